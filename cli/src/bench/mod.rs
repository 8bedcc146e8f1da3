//! `fl bench`: measures the parts, each beside a reference of the same run.

mod aggregate;
mod serve;
mod train;

use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Local training: images per second, step time, memory, share of the GEMM peak.
    Train(train::TrainArgs),
    /// A master under load: updates per second and latency, durable or not.
    Serve(serve::ServeArgs),
    /// Decoding and exact summation: f32-equivalent GB/s.
    Aggregate(aggregate::AggregateArgs),
}

/// Runs one benchmark.
pub fn run(command: BenchCommand, json: bool) -> anyhow::Result<()> {
    match command {
        BenchCommand::Train(args) => train::run(args, json),
        BenchCommand::Serve(args) => serve::run(args, json),
        BenchCommand::Aggregate(args) => aggregate::run(args, json),
    }
}
