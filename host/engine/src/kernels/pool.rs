//! The compute threads. On a machine with two shared cores a spin barrier is the slowest
//! instruction there is: one stolen core stalls all others. So there is no barrier here. A region
//! is a number of parts; who is awake takes the next part; the region ends when every part is
//! *done*, not when every thread has arrived. A worker that was pre-empted before it took a part
//! holds nothing and is not waited for.
//!
//! With one thread `run` is a plain loop. It refuses nested regions (`run` takes `&mut self`) and
//! it refuses to decide how many threads are worth it: the engine measures its steps and calls
//! `set_threads`.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::KernelError;

/// Rounds of `spin_loop` before a worker parks: some 20 µs, the gap between two regions of a step
/// with room to spare. Between steps it parks, so an idle engine burns nothing.
const SPIN_ROUNDS: u32 = 500;

/// Rounds before the caller, waiting for somebody's last part, offers its core to the scheduler.
const WAIT_ROUNDS: u32 = 200;

type Body<'a> = dyn Fn(usize) + Sync + 'a;

/// The caller's thread and `max_threads - 1` workers.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// Keeps the counters off each other's cache lines.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    /// Parts of the current region that nobody has taken; may go below zero.
    remaining: Padded<AtomicIsize>,
    /// Parts that are done.
    completed: Padded<AtomicUsize>,
    /// Threads that may take parts, the caller included.
    active: AtomicUsize,
    /// One flag per worker: it sleeps, or is about to.
    parked: Vec<AtomicBool>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Written by the caller while no part is out, read only by who has taken a part.
    job: UnsafeCell<Job>,
}

#[derive(Clone, Copy)]
struct Job {
    body: *const Body<'static>,
    parts: usize,
}

// SAFETY: `job` is the only field that is not Sync by itself. The caller writes it when `completed`
// says that every part taken so far is done; a worker reads it only between taking a part (a
// read-modify-write of `remaining` that follows the caller's release store) and completing it. So
// no read meets a write, and the body it points to is Sync and outlives the region.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only dereferenced inside a region.
unsafe impl Send for Shared {}

impl Pool {
    /// `max_threads` counts the calling thread; all of them start active.
    ///
    /// # Panics
    /// For zero threads.
    pub fn new(max_threads: usize) -> Result<Pool, KernelError> {
        assert!(max_threads >= 1, "the caller's thread is one of the pool's");
        let shared = Arc::new(Shared {
            remaining: Padded(AtomicIsize::new(0)),
            completed: Padded(AtomicUsize::new(0)),
            active: AtomicUsize::new(max_threads),
            parked: (1..max_threads).map(|_| AtomicBool::new(false)).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(Job {
                body: &|_: usize| {},
                parts: 0,
            }),
        });
        let mut pool = Pool {
            shared,
            workers: Vec::new(),
        };
        for index in 0..max_threads - 1 {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("compute-{}", index + 1));
            let worker = thread.spawn(move || shared.work(index));
            // Those that have started end with the pool.
            pool.workers
                .push(worker.map_err(|e| KernelError::NoThread(e.to_string()))?);
        }
        Ok(pool)
    }

    /// Threads this pool was built with.
    pub fn max_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Threads that take parts now.
    pub fn threads(&self) -> usize {
        self.shared.active.load(Ordering::Relaxed)
    }

    /// Uses `threads` threads from the next region on, at least 1 and at most
    /// [`Pool::max_threads`].
    pub fn set_threads(&mut self, threads: usize) {
        self.shared
            .active
            .store(threads.clamp(1, self.max_threads()), Ordering::Relaxed);
    }

    /// Calls `body(0) … body(parts - 1)`, each once, in any order and on any active thread; returns
    /// when all are done. The caller's writes are visible to the parts and the parts' writes to the
    /// caller.
    ///
    /// # Panics
    /// If a part panics; the other parts are finished first.
    pub fn run(&mut self, parts: usize, body: impl Fn(usize) + Sync) {
        if parts <= 1 || self.threads() == 1 {
            (0..parts).for_each(body);
            return;
        }
        self.publish(parts, &body);
        self.shared.take_parts();
        self.wait(parts);
        if self.shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a compute thread panicked; its message is above");
        }
    }

    /// Cuts `data` every `chunk` elements and gives each piece to one part: `body(part, piece)`.
    ///
    /// # Panics
    /// As [`Pool::run`], and if `chunk` is 0.
    pub fn run_chunks<T: Send>(
        &mut self,
        data: &mut [T],
        chunk: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let len = data.len();
        let first = Pieces(data.as_mut_ptr());
        self.run(len.div_ceil(chunk), |part| {
            let from = part * chunk;
            // SAFETY: `run` gives each part number out once, so the pieces are disjoint; they lie
            // inside `data`, which is borrowed for the whole region, and its elements may be sent.
            let piece =
                unsafe { std::slice::from_raw_parts_mut(first.at(from), chunk.min(len - from)) };
            body(part, piece);
        });
    }

    fn publish(&mut self, parts: usize, body: &Body<'_>) {
        let shared = &*self.shared;
        debug_assert!(
            shared.remaining.0.load(Ordering::Relaxed) <= 0,
            "regions do not overlap"
        );
        // SAFETY: only the lifetime changes. `run` returns, and `body` ends, after every part is
        // done, and nobody follows this pointer without holding a part.
        let body: &Body<'static> = unsafe { std::mem::transmute(body) };
        // SAFETY: no part is out, so nobody reads the cell (see `Sync for Shared`).
        unsafe { *shared.job.get() = Job { body, parts } };
        shared.completed.0.store(0, Ordering::Relaxed);
        let parts = isize::try_from(parts).expect("parts are counted in thousands");
        // Sequentially consistent with a worker's `parked` store: either it sees the parts or we
        // see it.
        shared.remaining.0.store(parts, Ordering::SeqCst);
        let workers = shared.active.load(Ordering::Relaxed) - 1;
        for (parked, worker) in shared.parked.iter().zip(&self.workers).take(workers) {
            if parked.load(Ordering::SeqCst) {
                parked.store(false, Ordering::Relaxed);
                worker.thread().unpark();
            }
        }
    }

    fn wait(&self, parts: usize) {
        let mut rounds = 0;
        while self.shared.completed.0.load(Ordering::Acquire) != parts {
            rounds += 1;
            if rounds < WAIT_ROUNDS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// The first element of the data of [`Pool::run_chunks`].
struct Pieces<T>(*mut T);

// SAFETY: only `run_chunks` uses it, and there every thread has pieces of its own, of elements
// that may be sent.
unsafe impl<T: Send> Sync for Pieces<T> {}

impl<T> Pieces<T> {
    fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its parts, so joining it cannot fail.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut rounds = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.has_work(index) {
                self.take_parts();
                rounds = 0;
            } else if rounds < SPIN_ROUNDS {
                rounds += 1;
                std::hint::spin_loop();
            } else {
                self.parked[index].store(true, Ordering::SeqCst);
                if !self.has_work(index) && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.parked[index].store(false, Ordering::Relaxed);
                rounds = 0;
            }
        }
    }

    /// Worker `index` is thread `index + 1` of the pool; the caller is thread 0.
    fn has_work(&self, index: usize) -> bool {
        self.remaining.0.load(Ordering::SeqCst) > 0
            && index + 1 < self.active.load(Ordering::Relaxed)
    }

    fn take_parts(&self) {
        loop {
            let left = self.remaining.0.fetch_sub(1, Ordering::AcqRel);
            if left <= 0 {
                return;
            }
            // SAFETY: this thread holds a part, so the caller does not write the cell, and the body
            // lives.
            let (job, body) = unsafe {
                let job = *self.job.get();
                (job, &*job.body)
            };
            let part = job.parts - left.unsigned_abs();
            if catch_unwind(AssertUnwindSafe(|| body(part))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.completed.0.fetch_add(1, Ordering::Release);
        }
    }
}
