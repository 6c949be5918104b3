//! `quorate-sim-mad`: one simulated run with the trace of everything in it, in a process that has
//! neither a clock nor randomness of its own.
//!
//! mad-turmoil takes the place of libc's `clock_gettime`, `getrandom` and `getentropy`. What still
//! differs between two processes with one seed is a leak: an address, an order, a thread. What
//! follows `--entropy` is one too: it was drawn from the operating system and not from the seed.

use std::{
    error::Error,
    fmt,
    fs::File,
    io::{self, BufWriter, Write},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use clap::Parser;
use mad_turmoil::time::SimClocksGuard;
use rand::{SeedableRng, rngs::StdRng};
use sim::run::{Report, RunSettings};
use tracing::Level;
use tracing_subscriber::fmt::{MakeWriter, format::Writer, time::FormatTime};

/// Runs one seed and writes everything that tracing is told.
#[derive(Parser)]
#[command(name = "quorate-sim-mad", version, max_term_width = 100)]
struct Arguments {
    /// Decides everything.
    #[arg(long)]
    seed: u64,
    /// Where the trace goes.
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// What the operating system's randomness comes from, instead of the seed. The trace is the same.
    #[arg(long, value_name = "SEED")]
    entropy: Option<u64>,
    /// Runs this seed first, untraced and on the same thread, as a sweep would.
    #[arg(long, value_name = "SEED")]
    after: Option<u64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let entropy = arguments.entropy.unwrap_or(arguments.seed);
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(entropy));
    let _clocks = SimClocksGuard::init();
    if let Some(seed) = arguments.after {
        run(seed, entropy);
    }
    let trace = Trace(Arc::new(Mutex::new(BufWriter::new(File::create(&arguments.trace)?))));
    tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_ansi(false)
        .with_timer(SimulatedTime)
        .with_writer(trace.clone())
        .init();
    let report = run(arguments.seed, entropy);
    tell(&report);
    // The subscriber is never dropped, and swallows what cannot be written.
    trace.make_writer().flush()?;
    println!(
        "seed {}: log {:016x}, state {:016x}",
        report.seed, report.log_hash, report.state_hash
    );
    Ok(())
}

/// Runs a seed, with all that is global to the process begun anew.
fn run(seed: u64, entropy: u64) -> Report {
    *mad_turmoil::rand::get_rng() = StdRng::seed_from_u64(entropy);
    // It mixes the time into a seed of its own, once for each thread.
    fastrand::seed(entropy);
    sim::run::run(&RunSettings { keep: true, ..RunSettings::of_seed(seed) })
}

/// Adds the simulator's own log and its verdicts to the trace.
fn tell(report: &Report) {
    for line in &report.lines {
        tracing::info!(target: "sim", "{line}");
    }
    tracing::info!(
        target: "sim",
        log = report.log_hash,
        state = report.state_hash,
        simulated_ms = report.simulated_ms,
        operations = report.operations,
    );
}

/// The file that the trace goes to.
#[derive(Clone)]
struct Trace(Arc<Mutex<BufWriter<File>>>);

impl<'a> MakeWriter<'a> for Trace {
    type Writer = TraceGuard<'a>;

    fn make_writer(&'a self) -> TraceGuard<'a> {
        TraceGuard(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct TraceGuard<'a>(MutexGuard<'a, BufWriter<File>>);

impl Write for TraceGuard<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Stamps each line with the simulated time.
struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        match turmoil::sim_elapsed() {
            Some(elapsed) => write!(to, "{:>9.3}", elapsed.as_secs_f64()),
            // Turmoil itself is speaking, and holds the world.
            None => to.write_str("        -"),
        }
    }
}
