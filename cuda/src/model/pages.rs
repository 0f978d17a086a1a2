//! Pages of the attention cache: allocated in slabs, counted, and copied when one of their sharers writes.

use std::sync::Arc;

use crate::device::{Device, DeviceError, Memory};

/// Bytes of a slab, unless a page is larger.
const SLAB_BYTES: usize = 16 << 20;

/// A page of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Page(usize);

struct Slab {
    memory: Memory,
    /// Sharers of each page.
    sharers: Vec<usize>,
    used: usize,
}

/// All pages of a model's sequences.
pub(super) struct PagePool {
    device: Arc<dyn Device>,
    page_bytes: usize,
    slab_pages: usize,
    slabs: Vec<Option<Slab>>,
}

impl PagePool {
    /// An empty pool of pages of `page_bytes` bytes.
    pub(super) fn new(device: &Arc<dyn Device>, page_bytes: usize) -> PagePool {
        let slab_pages = (SLAB_BYTES / page_bytes.max(1)).clamp(1, 64);
        PagePool { device: device.clone(), page_bytes, slab_pages, slabs: Vec::new() }
    }

    /// Bytes of a page.
    pub(super) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn slab(&self, page: Page) -> (&Slab, usize) {
        let slab = self.slabs[page.0 / self.slab_pages].as_ref();
        (slab.expect("a page in use keeps its slab"), page.0 % self.slab_pages)
    }

    /// A new page; its content is undefined.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn take(&mut self) -> Result<Page, DeviceError> {
        let open = |slab: &Option<Slab>| slab.as_ref().is_some_and(|slab| slab.used < slab.sharers.len());
        let index = match self.slabs.iter().position(open) {
            Some(index) => index,
            None => {
                let memory = Memory::new(&self.device, self.page_bytes * self.slab_pages)?;
                let slab = Slab { memory, sharers: vec![0; self.slab_pages], used: 0 };
                match self.slabs.iter().position(Option::is_none) {
                    Some(free) => {
                        self.slabs[free] = Some(slab);
                        free
                    }
                    None => {
                        self.slabs.push(Some(slab));
                        self.slabs.len() - 1
                    }
                }
            }
        };
        let slab = self.slabs[index].as_mut().expect("found or made above");
        let place = slab.sharers.iter().position(|&sharers| sharers == 0).expect("the slab is not full");
        slab.sharers[place] = 1;
        slab.used += 1;
        Ok(Page(index * self.slab_pages + place))
    }

    /// One more sharer.
    pub(super) fn share(&mut self, page: Page) {
        if let Some(slab) = &mut self.slabs[page.0 / self.slab_pages] {
            slab.sharers[page.0 % self.slab_pages] += 1;
        }
    }

    /// One sharer less. A slab without pages is freed, the first excepted.
    pub(super) fn release(&mut self, page: Page) {
        let index = page.0 / self.slab_pages;
        let Some(slab) = &mut self.slabs[index] else { return };
        let sharers = &mut slab.sharers[page.0 % self.slab_pages];
        *sharers -= 1;
        if *sharers == 0 {
            slab.used -= 1;
            if slab.used == 0 && index > 0 {
                self.slabs[index] = None;
            }
        }
    }

    /// The page itself where nobody shares it, otherwise a copy in its stead.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn writable(&mut self, page: Page) -> Result<Page, DeviceError> {
        let (slab, place) = self.slab(page);
        if slab.sharers[place] == 1 {
            return Ok(page);
        }
        let copy = self.take()?;
        let (from, to) = (self.address(page), self.address(copy));
        // SAFETY: both are whole pages of this device, and different ones.
        unsafe { self.device.copy(from, to, self.page_bytes)? };
        self.release(page);
        Ok(copy)
    }

    /// Where a page stands on the device.
    pub(super) fn address(&self, page: Page) -> u64 {
        let (slab, place) = self.slab(page);
        slab.memory.address() + (place * self.page_bytes) as u64
    }

    /// Reads the values of a page.
    ///
    /// # Errors
    /// A lost device.
    pub(super) fn read<T: crate::device::Plain>(&self, page: Page, to: &mut [T]) -> Result<(), DeviceError> {
        let (slab, place) = self.slab(page);
        slab.memory.read(place * self.page_bytes, to)
    }

    /// Writes the values of a page.
    ///
    /// # Errors
    /// A lost device.
    pub(super) fn write<T: crate::device::Plain>(
        &mut self,
        page: Page,
        from: &[T],
    ) -> Result<(), DeviceError> {
        let (slab_pages, page_bytes) = (self.slab_pages, self.page_bytes);
        match &mut self.slabs[page.0 / slab_pages] {
            Some(slab) => slab.memory.write(page.0 % slab_pages * page_bytes, from),
            None => Err(DeviceError::Other("a page that is not in use".to_owned())),
        }
    }
}
