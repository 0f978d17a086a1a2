//! Threads that help each other: work is offered on the stack of the thread that has it, and taken by whoever is free.

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// What the threads of a team share.
pub(super) struct Crew {
    /// Work that is offered, oldest first, as far as that can be had without order.
    offers: [AtomicPtr<Job>; OFFERS],
    helpers: Vec<Helper>,
    /// Helpers that take part in the passes of this time.
    invited: AtomicUsize,
    /// Passes that are running.
    passes: AtomicUsize,
    sleepers: AtomicUsize,
    stopped: AtomicBool,
    idle: Idle,
}

/// How many threads have no work, those that sleep among them. It changes seldom and is read often, so it has a cache line
/// of its own.
#[derive(Default)]
#[repr(align(128))]
struct Idle(AtomicUsize);

#[derive(Default)]
struct Helper {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

/// Places for work on offer. When all are taken, whoever would offer more does it itself.
const OFFERS: usize = 32;

/// Looks at the offers in vain before a helper sleeps in a pass, and before a thread that waits for its work sleeps: some
/// hundred and some ten microseconds.
const HELPER_LOOKS: usize = 4000;
const OWNER_LOOKS: usize = 400;

/// How long a thread that waits for its work sleeps at a time, before it looks whether it can help.
const NAP: Duration = Duration::from_micros(200);

/// Work on the stack of the thread that offers it.
#[repr(C)]
struct Job {
    /// Does the work. Called once, with a pointer to the [`StackJob`] around this.
    run: unsafe fn(*const Job),
    /// Who waits for it.
    owner: Thread,
    state: AtomicU8,
}

const OPEN: u8 = 0;
/// Its owner sleeps until it is done.
const AWAITED: u8 = 1;
const DONE: u8 = 2;

/// A job with its closure and result.
#[repr(C)]
struct StackJob<F, R> {
    job: Job,
    work: UnsafeCell<Option<F>>,
    result: UnsafeCell<Option<std::thread::Result<R>>>,
}

impl<F: FnOnce() -> R + Send, R: Send> StackJob<F, R> {
    fn new(work: F) -> StackJob<F, R> {
        StackJob {
            job: Job { run: Self::run, owner: std::thread::current(), state: AtomicU8::new(OPEN) },
            work: UnsafeCell::new(Some(work)),
            result: UnsafeCell::new(None),
        }
    }

    /// Does the work for its owner.
    ///
    /// # Safety
    /// `job` is the first field of a `StackJob<F, R>` that lives until its state is `DONE`, and nobody else runs it.
    unsafe fn run(job: *const Job) {
        // SAFETY: the caller's promise; `repr(C)` puts the job at the address of the whole.
        let this = unsafe { &*job.cast::<StackJob<F, R>>() };
        // SAFETY: whoever runs the job is the only one to touch both cells until the state is `DONE`.
        unsafe {
            if let Some(work) = (*this.work.get()).take() {
                *this.result.get() = Some(catch_unwind(AssertUnwindSafe(work)));
            }
        }
        let owner = this.job.owner.clone();
        if this.job.state.swap(DONE, Ordering::AcqRel) == AWAITED {
            owner.unpark();
        }
    }
}

thread_local! {
    /// The crew whose pass this thread is in.
    static CREW: Cell<*const Crew> = const { Cell::new(std::ptr::null()) };
    /// How long this thread has slept in this pass because others held its work.
    pub(super) static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Does both, possibly at once: `second` is offered to the team's helpers while this thread does `first`. Outside a
/// pass one after the other.
///
/// # Panics
/// When one of them does, once both are over.
pub fn join<A, B: Send>(first: impl FnOnce() -> A, second: impl FnOnce() -> B + Send) -> (A, B) {
    let crew = CREW.get();
    if crew.is_null() {
        return (first(), second());
    }
    // SAFETY: `Pass` and `Crew::help` set the pointer and keep the crew alive until they unset it or end.
    let crew = unsafe { &*crew };
    let mut job = StackJob::new(second);
    let offered = crew.offer(&raw const job);
    let first = catch_unwind(AssertUnwindSafe(first));
    if let Some(place) = offered
        && !crew.take_back(place, (&raw const job).cast())
    {
        crew.wait(&job.job);
    }
    // Nobody else knows of the job any more, done or taken back.
    let second = match job.result.get_mut().take() {
        Some(result) => result,
        None => match job.work.get_mut().take() {
            Some(work) => catch_unwind(AssertUnwindSafe(work)),
            None => unreachable!("work is gone only when there is a result"),
        },
    };
    match (first, second) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(panic), _) | (_, Err(panic)) => resume_unwind(panic),
    }
}

/// Whether a thread of this pass has no work, so that it pays to offer it some: a hint, which may be out of date.
///
/// An offer costs about a tenth of a microsecond, whether it is taken or not. Those who have many small units ask before
/// they offer.
pub(super) fn wanted() -> bool {
    let crew = CREW.get();
    if crew.is_null() {
        return false;
    }
    // SAFETY: as in `join`.
    let crew = unsafe { &*crew };
    let away = crew.helpers.len().saturating_sub(crew.invited.load(Ordering::Relaxed));
    crew.idle.0.load(Ordering::Relaxed) > away
}

impl Crew {
    pub(super) fn new(helpers: usize) -> Crew {
        Crew {
            offers: [const { AtomicPtr::new(std::ptr::null_mut()) }; OFFERS],
            helpers: std::iter::repeat_with(Helper::default).take(helpers).collect(),
            invited: AtomicUsize::new(0),
            passes: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            idle: Idle(AtomicUsize::new(helpers)),
        }
    }

    /// Offers a job, whose owner then waits for it or takes it back before it goes. Returns its place, if there was one.
    fn offer<F, R>(&self, job: *const StackJob<F, R>) -> Option<usize> {
        if self.invited.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (job, free) = (job.cast::<Job>().cast_mut(), std::ptr::null_mut());
        let place = self.offers.iter().position(|offer| {
            offer.load(Ordering::Relaxed).is_null()
                && offer.compare_exchange(free, job, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })?;
        // Whoever goes to sleep says so before it looks a last time, and this looks after it offered.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let invited = 0..self.invited.load(Ordering::Relaxed).min(self.helpers.len());
            if let Some(index) =
                invited.into_iter().find(|&index| self.helpers[index].asleep.load(Ordering::Relaxed))
            {
                self.wake(index);
            }
        }
        Some(place)
    }

    /// Whether the job was still on offer.
    fn take_back(&self, place: usize, job: *const Job) -> bool {
        let (offer, free) = (&self.offers[place], std::ptr::null_mut());
        offer.compare_exchange(job.cast_mut(), free, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Takes a job on offer and does it; false if there was none. The caller counts as idle.
    fn do_one(&self) -> bool {
        for offer in &self.offers {
            let job = offer.load(Ordering::Relaxed);
            let free = std::ptr::null_mut();
            if !job.is_null()
                && offer.compare_exchange(job, free, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                self.idle.0.fetch_sub(1, Ordering::Relaxed);
                // SAFETY: a job on offer is alive, and whoever takes it out of its place is the only one to run it;
                // its owner waits until it is done.
                unsafe { ((*job).run)(job) };
                self.idle.0.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    /// Waits until a job that somebody took is done, and helps meanwhile.
    fn wait(&self, job: &Job) {
        if job.state.load(Ordering::Acquire) == DONE {
            return;
        }
        self.idle.0.fetch_add(1, Ordering::Relaxed);
        self.wait_idle(job);
        self.idle.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn wait_idle(&self, job: &Job) {
        let done = || job.state.load(Ordering::Acquire) == DONE;
        let mut looks = 0;
        while looks < OWNER_LOOKS {
            if done() {
                return;
            }
            looks = if self.do_one() { 0 } else { looks + 1 };
            std::hint::spin_loop();
        }
        // Whoever has it may have lost its processor. Sleeping leaves it this one.
        let start = Instant::now();
        let awaited = job.state.compare_exchange(OPEN, AWAITED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        while awaited && !done() {
            std::thread::park_timeout(NAP);
            self.do_one();
        }
        WAITED.set(WAITED.get() + start.elapsed());
    }

    /// What a helper does all its life.
    pub(super) fn help(self: Arc<Crew>, index: usize) {
        CREW.set(Arc::as_ptr(&self));
        let (helper, mut looks) = (&self.helpers[index], 0);
        // Before it first sleeps, so that whoever finds it asleep can wake it.
        helper.thread.get_or_init(std::thread::current);
        let stopped = || self.stopped.load(Ordering::SeqCst);
        let invited = || index < self.invited.load(Ordering::SeqCst);
        while !stopped() {
            if invited() && self.do_one() {
                looks = 0;
            } else if invited() && self.passes.load(Ordering::Relaxed) > 0 && looks < HELPER_LOOKS {
                looks += 1;
                std::hint::spin_loop();
            } else {
                looks = 0;
                helper.asleep.store(true, Ordering::SeqCst);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                let offered = || self.offers.iter().any(|offer| !offer.load(Ordering::SeqCst).is_null());
                if stopped() || (invited() && offered()) {
                    self.wake(index);
                }
                while helper.asleep.load(Ordering::Acquire) {
                    std::thread::park();
                }
            }
        }
    }

    /// Whether every helper sleeps.
    #[cfg(test)]
    pub(super) fn all_asleep(&self) -> bool {
        self.helpers.iter().all(|helper| helper.asleep.load(Ordering::SeqCst))
    }

    /// Sends all helpers home.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        (0..self.helpers.len()).for_each(|index| self.wake(index));
    }

    /// Wakes a helper if it sleeps.
    fn wake(&self, index: usize) {
        let helper = &self.helpers[index];
        if helper.asleep.swap(false, Ordering::SeqCst) {
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            if let Some(thread) = helper.thread.get() {
                thread.unpark();
            }
        }
    }
}

/// While it lives, this thread is in a pass of a crew.
pub(super) struct Pass<'a> {
    crew: &'a Crew,
    /// The crew of the pass around this one.
    outer: *const Crew,
}

impl<'a> Pass<'a> {
    pub(super) fn enter(crew: &'a Crew, helpers: usize) -> Pass<'a> {
        crew.invited.store(helpers, Ordering::SeqCst);
        crew.passes.fetch_add(1, Ordering::SeqCst);
        (0..helpers).for_each(|index| crew.wake(index));
        Pass { crew, outer: CREW.replace(crew) }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        CREW.set(self.outer);
        self.crew.passes.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Threads in the pass that this thread is in.
pub(super) fn present() -> usize {
    let crew = CREW.get();
    // SAFETY: as in `join`.
    if crew.is_null() { 1 } else { unsafe { &*crew }.invited.load(Ordering::Relaxed) + 1 }
}
