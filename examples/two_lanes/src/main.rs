//! The scheduler with worker processes, one of which is killed on the way.

#[cfg(not(loom))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    processes::main()
}

/// `src/lib.rs` is what a model runs.
#[cfg(loom)]
fn main() {}

#[cfg(not(loom))]
mod processes {
    use ipc_queue::{PlainReceiver, PlainSender, bounded_plain};
    use proc_pool::Process;
    use std::collections::HashSet;
    use std::error::Error;
    use two_lanes::{Client, Lane, Task, Worker, two_lanes};

    const WORKERS: usize = 3;
    const TASKS: Task = 20_000;
    /// Every so many tasks one is urgent.
    const URGENT: Task = 10;

    pub(crate) fn main() -> Result<(), Box<dyn Error>> {
        proc_pool::init();
        let (client, worker) = two_lanes(64)?;
        let (report, reports) = bounded_plain::<Task>(1024)?;
        let start = |_| Process::spawn(run_all, (worker.clone(), report.clone()));
        let workers = (0..WORKERS).map(start).collect::<Result<Vec<_>, _>>()?;
        // From here on only the workers' own handles count.
        drop((worker, report));

        let collector = std::thread::spawn(move || count(&reports));
        submit_all(client, &workers[0])?;
        for worker in &workers[1..] {
            worker.join()?;
        }
        let ran = collector.join().expect("no panic")?;
        // It had one task in hand at most.
        if TASKS - ran > 1 {
            return Err(format!("{} tasks were lost", TASKS - ran).into());
        }
        println!(
            "{TASKS} tasks in {WORKERS} processes, one killed: none ran twice, it took at most one along"
        );
        Ok(())
    }

    fn run_all((worker, report): (Worker, PlainSender<Task>)) {
        while let Some(task) = worker.next() {
            // The task itself would be here.
            report.send(task).expect("the parent listens");
        }
    }

    fn submit_all(client: Client, victim: &Process<()>) -> Result<(), Box<dyn Error>> {
        for task in 0..TASKS {
            let lane = if task % URGENT == 0 { Lane::Urgent } else { Lane::Normal };
            client.submit(lane, task)?;
            if task == TASKS / 2 {
                victim.kill()?;
                // An error: it was killed. It may have heard a ring that nobody else will hear.
                let _ = victim.join();
                client.ring();
            }
        }
        Ok(())
    }

    /// How many tasks ran, until the last worker is gone.
    fn count(reports: &PlainReceiver<Task>) -> Result<Task, String> {
        let mut seen = HashSet::new();
        for task in reports.iter().flatten() {
            if !seen.insert(task) {
                return Err(format!("task {task} ran twice"));
            }
        }
        Ok(seen.len() as Task)
    }
}
