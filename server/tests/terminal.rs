//! What a terminal is shown: conversations, progress, colours. The binary runs on a pseudo-terminal.
#![cfg(unix)]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long something that must come is waited for: a guard against hanging, not a measurement.
const PATIENCE: Duration = Duration::from_secs(300);

struct Terminal {
    keys: File,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
    /// How much of what was shown has been looked at.
    seen: usize,
}

impl Terminal {
    fn start(home: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Terminal {
        let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_millpond"))
            .args(arguments)
            .env_clear()
            .env("HOME", home)
            .env("TERM", "xterm")
            .envs(variables.iter().copied())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        drop(pty.slave);
        let keys = File::from(pty.master);
        let mut screen = keys.try_clone().unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let into = shown.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // Reading fails once the program has gone.
            while let Ok(count @ 1..) = screen.read(&mut chunk) {
                into.lock().unwrap().extend_from_slice(&chunk[..count]);
            }
        });
        Terminal { keys, shown, child, seen: 0 }
    }

    fn all(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until a text is shown that was not looked at before.
    fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            let bytes = self.shown.lock().unwrap().clone();
            let found = bytes[self.seen..].windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                self.seen += at + text.len();
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{text:?} in {}", self.all());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn keys(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    fn end(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "still running: {}", self.all());
            std::thread::sleep(Duration::from_millis(20));
        };
        // What it wrote last may still be on its way.
        std::thread::sleep(Duration::from_millis(50));
        (status, self.all())
    }
}

const CHAT: [&str; 6] = ["chat", "-n", "8", "--temp", "0", "--stats"];

#[test]
fn a_conversation_has_history_lines_and_figures() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(home.path(), &CHAT, &[]);
    terminal.wait_for("/help lists");
    terminal.wait_for("> ");
    terminal.keys("Hello!\r");
    terminal.wait_for("answer: ");
    // The arrow brings back what was said; a text of several lines is one question.
    terminal.keys("\x1b[A");
    terminal.wait_for("Hello!");
    terminal.keys("\r");
    terminal.wait_for("answer: ");
    terminal.keys("\"\"\"first\r");
    terminal.wait_for(". ");
    terminal.keys("second\"\"\"\r");
    terminal.wait_for("answer: ");
    terminal.keys("/nonsense\r");
    terminal.wait_for("there is no /nonsense");
    terminal.keys("/exit\r");
    let (status, shown) = terminal.end();
    assert!(status.success(), "{shown}");
    assert!(shown.contains("\x1b[2m"), "figures are faint: {shown:?}");
    let history = std::fs::read_to_string(home.path().join(".local/state/millpond/history")).unwrap();
    assert!(history.contains("Hello!") && history.contains("/nonsense"), "{history}");
    // The next conversation remembers.
    let mut terminal = Terminal::start(home.path(), &CHAT, &[("NO_COLOR", "1")]);
    terminal.wait_for("> ");
    terminal.keys("\x1b[A");
    terminal.wait_for("/exit");
    terminal.keys("\r");
    let (status, shown) = terminal.end();
    assert!(status.success() && !shown.contains("\x1b[2m"), "{shown:?}");
}

#[test]
fn ctrl_c_stops_the_answer_first_and_the_program_last() {
    let home = tempfile::tempdir().unwrap();
    let endless = ["chat", "--ignore-eos", "--stats"];
    let mut terminal = Terminal::start(home.path(), &endless, &[]);
    terminal.wait_for("> ");
    terminal.keys("Tell me a long story.\r");
    // The question stands on a line of its own; then the answer comes.
    terminal.wait_for("story.");
    let asked = terminal.shown.lock().unwrap().len();
    while terminal.shown.lock().unwrap().len() < asked + 40 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let process = Pid::from_raw(i32::try_from(terminal.child.id()).unwrap());
    kill(process, Signal::SIGINT).unwrap();
    terminal.wait_for("answer: ");
    terminal.wait_for("> ");
    terminal.keys("\x03");
    terminal.wait_for("once more");
    terminal.wait_for("> ");
    terminal.keys("\x03");
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(130), "{shown}");
}

#[test]
fn long_prompts_and_nothing_else_have_a_bar() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("long.txt");
    std::fs::write(&file, "The king looked at the dragon. ".repeat(150)).unwrap();
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let terminal = Terminal::start(home.path(), &[&["run", "-n", "2"], arguments].concat(), variables);
        let (status, shown) = terminal.end();
        assert!(status.success(), "{shown}");
        shown
    };
    let long = ["-f", file.to_str().unwrap()];
    assert!(run(&long, &[]).contains("reading the prompt"));
    assert!(!run(&long, &[("TERM", "dumb")]).contains("reading the prompt"));
    assert!(!run(&["The king"], &[]).contains("reading the prompt"));
}
