//! A stand-in for NVIDIA's `libnvidia-ml.so`, so that the code that talks to the real one
//! runs on a machine without a GPU, and so that a GPU can be lost, hang or lie on demand.
//!
//! The library reads its state anew at every call from a text file of `key=value` lines,
//! so a test (or a person with an editor) changes the temperature while a server runs. The
//! file is named by the environment variable `FAKE_NVML_STATE`; without it, it lies beside
//! the library with the ending `.state`, which lets several copies live in one process.
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `count` | 1 | number of devices |
//! | `name`, `uuid`, `driver` | Fake H200, GPU-fake-N, 580.159.03 | texts |
//! | `temperature`, `memory_temperature` | 45, 50 | °C |
//! | `gpu_max`, `slowdown`, `shutdown`, `memory_max` | 87, 92, 95, 95 | thresholds, °C |
//! | `margin` | `gpu_max` − `temperature` | live T.Limit margin, °C |
//! | `power_mw`, `power_average_mw`, `power_limit_mw` | 120000, `power_mw`, 700000 | mW |
//! | `power_limit_min_mw`, `power_limit_max_mw` | 200000, 700000 | mW |
//! | `field.186.memory`, `field.186.module` | not supported | power of other scopes, mW |
//! | `field.74` … `field.81`, `field.251` … `field.273` | not supported | time held down, ns |
//! | `energy_mj` | 1000000 | counter, mJ |
//! | `clock_mhz`, `max_clock_mhz` | 1980, 1980 | MHz |
//! | `gpu_util`, `memory_util` | 10, 5 | % |
//! | `memory_used`, `memory_total` | 10 GiB, 140 GiB | bytes |
//! | `throttle` | 0 | clock event reasons, a bit mask; `0x40` = hardware thermal |
//! | `pstate` | 0 | performance state |
//! | `fault`, `fault.<call>` | none | see below |
//!
//! A key with a device index in front (`1.temperature=86`) concerns that device alone.
//! `fault` concerns every call on a device, `fault.<call>` one call: `init`, `count`,
//! `handle`, `name`, `uuid`, `temperature`, `threshold`, `margin`, `fields`,
//! `field.<id>`, `field.<id>.memory`, `energy`, `power`, `limit`, `limits`, `clock`,
//! `max_clock`, `utilization`, `memory`, `throttle`, `violation`, `pstate`. Faults are
//! `gpu_lost`, `not_supported`, `unknown`, `no_permission`, `driver_not_loaded`,
//! `version_mismatch`, `timeout`, `slow`, which takes 20 ms, and `hang`, which blocks the
//! call until the fault is taken out of the file. A library in which a symbol
//! is missing is made by [`FakeNvml::without`].
//!
//! It refuses to be clever: no physics, no time; what the file says is what it answers.

mod calls;
mod harness;
mod state;

pub use harness::{FakeNvml, library};
