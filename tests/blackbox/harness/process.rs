//! One process of `quorate start`: its ready line, its log, its signals and what the system knows of
//! it. Ended when dropped.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{binary, wait::PATIENCE};

/// What can be done to a process that cannot refuse, or that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Please stop.
    Terminate,
    /// Stands still, with all its connections open.
    Pause,
    /// Goes on.
    Resume,
}

/// What the ready line says.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    /// The node's id, as people write it.
    pub(crate) node_id: String,
    /// Where clients connect.
    pub(crate) client_address: SocketAddr,
    /// Where nodes connect.
    pub(crate) peer_address: SocketAddr,
    /// Where its metrics are, if they are served.
    pub(crate) metrics_address: Option<SocketAddr>,
}

/// A running node.
pub(crate) struct Process {
    name: String,
    child: Child,
    ready: mpsc::Receiver<String>,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// Starts `quorate start` with these arguments, and as many open files as it may have. It need not be ready
    /// yet.
    pub(crate) fn spawn(name: &str, arguments: &[String], open_files: Option<u32>) -> Self {
        let command = match open_files {
            Some(limit) => binary::command_with_open_files(limit),
            None => binary::command(),
        };
        Self::of(name, command, arguments)
    }

    fn of(name: &str, mut command: Command, arguments: &[String]) -> Self {
        let mut child = command
            .args(["start", "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be run");
        let stdout = child.stdout.take().expect("piped above");
        let mut stderr = child.stderr.take().expect("piped above");
        let (sender, ready) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody waits for further lines once the node is ready.
                let _ = sender.send(line);
            }
        });
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]);
                written.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Self { name: name.to_owned(), child, ready, log }
    }

    /// Waits for the ready line. Panics with the log if the process ends instead.
    pub(crate) fn wait_ready(&mut self) -> Ready {
        let line = match self.ready.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!("{} was never ready ({error}):\n{}", self.name, self.log()),
        };
        let it: Value = serde_json::from_str(&line).expect("the ready line is JSON");
        assert_eq!(it["event"], "ready", "{line}");
        assert_eq!(it["pid"], self.child.id(), "{line}");
        let text = |name: &str| it[name].as_str().unwrap_or_else(|| panic!("{name} in {line}"));
        let address = |name: &str| text(name).parse().expect("an address");
        Ready {
            node_id: text("node_id").to_owned(),
            client_address: address("client_address"),
            peer_address: address("peer_address"),
            metrics_address: (!it["metrics_address"].is_null()).then(|| address("metrics_address")),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written to standard error.
    pub(crate) fn log(&self) -> String {
        let guard: MutexGuard<'_, String> = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        guard.clone()
    }

    /// Sends a signal. Panics if the process has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let name = match signal {
            Signal::Terminate => "TERM",
            Signal::Pause => "STOP",
            Signal::Resume => "CONT",
        };
        // A shell's own `kill`: the program is not on every machine.
        let line = format!("kill -{name} {}", self.pid());
        let status = Command::new("sh").args(["-c", &line]).status().expect("there is a shell");
        assert!(status.success(), "{}: {line}", self.name);
        // Other threads of the process run on until they notice.
        let deadline = Instant::now() + PATIENCE;
        while signal == Signal::Pause && !self.stands_still() {
            assert!(Instant::now() < deadline, "{} does not stand still", self.name);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// True if every thread of the process is stopped, or has ended.
    fn stands_still(&self) -> bool {
        let path = format!("/proc/{}/task", self.pid());
        let tasks = fs::read_dir(&path).unwrap_or_else(|it| panic!("{path}: {it}"));
        tasks.flatten().all(|task| {
            let Ok(text) = fs::read_to_string(task.path().join("status")) else { return true };
            let state = text.lines().find_map(|it| it.strip_prefix("State:"));
            state.is_some_and(|it| ["T", "t", "Z", "X"].contains(&&it.trim()[..1]))
        })
    }

    /// Kills it as power loss would, without a chance to react, and waits for its end.
    pub(crate) fn kill(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("our own child");
    }

    /// Waits for its end. Panics if it does not come.
    pub(crate) fn wait_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Memory that it holds, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).unwrap_or_else(|it| panic!("{path}: {it}"));
        let line = text.lines().find_map(|it| it.strip_prefix("VmRSS:")).expect("Linux says it");
        line.trim().trim_end_matches(" kB").parse().expect("a number of kB")
    }

    /// Sockets that it holds open: listeners and connections.
    pub(crate) fn sockets(&self) -> usize {
        let path = format!("/proc/{}/fd", self.pid());
        let entries = fs::read_dir(&path).unwrap_or_else(|it| panic!("{path}: {it}"));
        let targets = entries.flatten().filter_map(|it| fs::read_link(it.path()).ok());
        targets.filter(|it| it.to_string_lossy().starts_with("socket:")).count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.len().saturating_sub(5);
            let (early, late) = lines.split_at(tail);
            let worth_showing = |it: &&&str| !it.contains("INFO");
            let shown: Vec<&str> =
                early.iter().filter(worth_showing).chain(late).copied().collect();
            let shown = shown[shown.len().saturating_sub(20)..].join("\n");
            println!("--- {}, of its log:\n{shown}", self.name);
        }
    }
}
