//! The C symbols, as far as the telemetry room calls them.
//!
//! Structures are laid out by hand after `nvml.h`: taking them from the bindings that the
//! caller uses would hide a mistake that both share.

#![allow(
    unsafe_code,
    non_snake_case,
    reason = "exports C functions under NVIDIA's names and writes through C pointers"
)]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

use crate::state::{INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, State, enter};

type Handle = *mut c_void;

/// A handle is the device's index plus one, so that null is no device.
fn index(device: Handle) -> Result<u32, u32> {
    match device as usize {
        0 => Err(INVALID_ARGUMENT),
        handle => Ok(handle as u32 - 1),
    }
}

/// Runs a call on a device and stores its answer.
///
/// # Safety
/// `out` is null or valid for a write of `T`.
unsafe fn answer<T>(
    device: Handle,
    call: &str,
    out: *mut T,
    value: impl FnOnce(&State, u32) -> Result<T, u32>,
) -> u32 {
    let answered = index(device).and_then(|i| value(&enter(Some(i), call)?, i));
    match answered {
        // SAFETY: not null, and then valid by this function's contract.
        Ok(value) if !out.is_null() => unsafe { out.write(value) },
        Ok(_) => return INVALID_ARGUMENT,
        Err(code) => return code,
    }
    SUCCESS
}

/// Copies a text with its NUL, cut to the buffer.
///
/// # Safety
/// `out` is valid for `length` bytes.
unsafe fn put_text(text: &str, out: *mut c_char, length: c_uint) -> u32 {
    if out.is_null() || length == 0 {
        return INVALID_ARGUMENT;
    }
    let bytes = text.len().min(length as usize - 1);
    // SAFETY: at most `length` bytes with the NUL, which the caller vouches for.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), out, bytes);
        out.add(bytes).write(0);
    }
    SUCCESS
}

fn code(result: Result<State, u32>) -> u32 {
    result.err().unwrap_or(SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> u32 {
    code(enter(None, "init"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> u32 {
    code(enter(None, "init"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> u32 {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(_code: u32) -> *const c_char {
    c"fake NVML error".as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) -> u32 {
    let state = State::read();
    let version = state.text(0, "driver").unwrap_or("580.159.03");
    // SAFETY: the caller's buffer has that length.
    unsafe { put_text(version, out, length) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(out: *mut c_uint) -> u32 {
    match enter(None, "count") {
        // SAFETY: a valid pointer by NVML's contract.
        Ok(state) => unsafe { out.write(state.number(0, "count", 1) as c_uint) },
        Err(code) => return code,
    }
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut Handle) -> u32 {
    let state = match enter(Some(index), "handle") {
        Ok(state) => state,
        Err(code) => return code,
    };
    if i64::from(index) >= state.number(0, "count", 1) {
        return INVALID_ARGUMENT;
    }
    // SAFETY: a valid pointer by NVML's contract.
    unsafe { out.write((index as usize + 1) as Handle) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: Handle, out: *mut c_char, length: c_uint) -> u32 {
    let named = index(device).and_then(|i| Ok((enter(Some(i), "name")?, i)));
    match named {
        // SAFETY: the caller's buffer has that length.
        Ok((state, i)) => unsafe {
            put_text(state.text(i, "name").unwrap_or("Fake H200"), out, length)
        },
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(device: Handle, out: *mut c_char, length: c_uint) -> u32 {
    let named = index(device).and_then(|i| Ok((enter(Some(i), "uuid")?, i)));
    match named {
        Ok((state, i)) => {
            let default = format!("GPU-fake-{i}");
            // SAFETY: the caller's buffer has that length.
            unsafe { put_text(state.text(i, "uuid").unwrap_or(&default), out, length) }
        }
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: Handle,
    _sensor: c_uint,
    out: *mut c_uint,
) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "temperature", out, |state, i| {
            Ok(state.number(i, "temperature", 45) as c_uint)
        })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperatureThreshold(
    device: Handle,
    kind: c_uint,
    out: *mut c_uint,
) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "threshold", out, |state, i| {
            let celsius = match kind {
                0 => state.number(i, "shutdown", 95),
                1 => state.number(i, "slowdown", 92),
                2 => state.number(i, "memory_max", 95),
                3 => state.number(i, "gpu_max", 87),
                _ => return Err(NOT_SUPPORTED),
            };
            Ok(celsius as c_uint)
        })
    }
}

#[repr(C)]
struct MarginTemperature {
    version: c_uint,
    celsius: c_int,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMarginTemperature(
    device: Handle,
    out: *mut MarginTemperature,
) -> u32 {
    const VERSION_1: c_uint = size_of::<MarginTemperature>() as c_uint | 1 << 24;
    // SAFETY: `out` is valid by NVML's contract.
    if out.is_null() || unsafe { (*out).version } != VERSION_1 {
        return INVALID_ARGUMENT;
    }
    // SAFETY: as above.
    unsafe {
        answer(device, "margin", out, |state, i| {
            let margin = state.number(i, "gpu_max", 87) - state.number(i, "temperature", 45);
            Ok(MarginTemperature {
                version: VERSION_1,
                celsius: state.number(i, "margin", margin) as c_int,
            })
        })
    }
}

#[repr(C)]
union Value {
    double: f64,
    signed: c_int,
    unsigned: c_uint,
    long: c_ulonglong,
}

#[repr(C)]
struct FieldValue {
    field: c_uint,
    scope: c_uint,
    timestamp: i64,
    latency_us: i64,
    value_type: c_uint,
    status: u32,
    value: Value,
}

/// How a field is called in the state file: by its number, and its scope where that is not
/// the GPU.
fn field_name(id: u32, scope: u32) -> String {
    match scope {
        0 => format!("field.{id}"),
        1 => format!("field.{id}.module"),
        2 => format!("field.{id}.memory"),
        _ => format!("field.{id}.scope{scope}"),
    }
}

/// One field: its value type after `nvmlValueType_t` and its value.
fn field(state: &State, i: u32, id: u32, scope: u32) -> Result<(c_uint, Value), u32> {
    let unsigned = |n: i64| {
        (
            1,
            Value {
                unsigned: n as c_uint,
            },
        )
    };
    let signed = |n: i64| (5, Value { signed: n as c_int });
    let limit = state.number(i, "gpu_max", 87);
    let name = field_name(id, scope);
    if scope != 0 || matches!(id, 74..=81 | 251..=273) {
        state.text(i, &name).ok_or(NOT_SUPPORTED)?;
        let long = state.number(i, &name, 0) as c_ulonglong;
        return Ok(match scope {
            0 => (3, Value { long }),
            _ => unsigned(long as i64),
        });
    }
    Ok(match id {
        82 => unsigned(state.number(i, "memory_temperature", 50)),
        83 => (
            3,
            Value {
                long: state.number(i, "energy_mj", 1_000_000) as c_ulonglong,
            },
        ),
        185 => unsigned(state.number(i, "power_average_mw", state.number(i, "power_mw", 120_000))),
        186 => unsigned(state.number(i, "power_mw", 120_000)),
        190 => unsigned(state.number(i, "power_limit_mw", 700_000)),
        // T.Limits are margins: how far above the operating limit, with a minus.
        193 => signed(limit - state.number(i, "shutdown", 95)),
        194 => signed(limit - state.number(i, "slowdown", 92)),
        195 => signed(limit - state.number(i, "memory_max", 95)),
        196 => signed(0),
        _ => return Err(NOT_SUPPORTED),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: Handle,
    count: c_int,
    values: *mut FieldValue,
) -> u32 {
    let entered = index(device).and_then(|i| Ok((enter(Some(i), "fields")?, i)));
    let (state, i) = match entered {
        Ok(entered) => entered,
        Err(code) => return code,
    };
    if values.is_null() || count < 0 {
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller passes `count` initialised structures.
    let values = unsafe { std::slice::from_raw_parts_mut(values, count as usize) };
    for slot in values {
        let fault = enter(Some(i), &field_name(slot.field, slot.scope));
        match fault.and_then(|_| field(&state, i, slot.field, slot.scope)) {
            Ok((value_type, value)) => {
                slot.status = SUCCESS;
                slot.value_type = value_type;
                slot.value = value;
            }
            Err(code) => slot.status = code,
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(
    device: Handle,
    out: *mut c_ulonglong,
) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "energy", out, |state, i| {
            Ok(state.number(i, "energy_mj", 1_000_000) as c_ulonglong)
        })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: Handle, out: *mut c_uint) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "power", out, |state, i| {
            let power = state.number(i, "power_mw", 120_000);
            Ok(state.number(i, "power_average_mw", power) as c_uint)
        })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: Handle, out: *mut c_uint) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "limit", out, |state, i| {
            Ok(state.number(i, "power_limit_mw", 700_000) as c_uint)
        })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: Handle,
    _kind: c_uint,
    out: *mut c_uint,
) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "clock", out, |state, i| {
            Ok(state.number(i, "clock_mhz", 1_980) as c_uint)
        })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxClockInfo(
    device: Handle,
    _kind: c_uint,
    out: *mut c_uint,
) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "max_clock", out, |state, i| {
            Ok(state.number(i, "max_clock_mhz", 1_980) as c_uint)
        })
    }
}

#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUtilizationRates(device: Handle, out: *mut Utilization) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "utilization", out, |state, i| {
            Ok(Utilization {
                gpu: state.number(i, "gpu_util", 10) as c_uint,
                memory: state.number(i, "memory_util", 5) as c_uint,
            })
        })
    }
}

#[repr(C)]
struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, out: *mut MemoryV2) -> u32 {
    const GIB: i64 = 1 << 30;
    const VERSION_2: c_uint = size_of::<MemoryV2>() as c_uint | 2 << 24;
    // SAFETY: `out` is valid by NVML's contract.
    if out.is_null() || unsafe { (*out).version } != VERSION_2 {
        return INVALID_ARGUMENT;
    }
    // SAFETY: as above.
    unsafe {
        answer(device, "memory", out, |state, i| {
            let total = state.number(i, "memory_total", 140 * GIB) as c_ulonglong;
            let used = state.number(i, "memory_used", 10 * GIB) as c_ulonglong;
            Ok(MemoryV2 {
                version: VERSION_2,
                total,
                reserved: 0,
                free: total.saturating_sub(used),
                used,
            })
        })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: Handle,
    out: *mut c_ulonglong,
) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "throttle", out, |state, i| {
            Ok(state.number(i, "throttle", 0) as c_ulonglong)
        })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPerformanceState(device: Handle, out: *mut c_uint) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "pstate", out, |state, i| {
            Ok(state.number(i, "pstate", 0) as c_uint)
        })
    }
}

#[repr(C)]
struct ViolationTime {
    reference_us: c_ulonglong,
    violation_ns: c_ulonglong,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetViolationStatus(
    device: Handle,
    policy: c_uint,
    out: *mut ViolationTime,
) -> u32 {
    // SAFETY: `out` is valid by NVML's contract.
    unsafe {
        answer(device, "violation", out, |state, i| {
            // The policies have the order of the fields of that name.
            let name = field_name(74 + policy, 0);
            state.text(i, &name).ok_or(NOT_SUPPORTED)?;
            Ok(ViolationTime {
                reference_us: 0,
                violation_ns: state.number(i, &name, 0) as c_ulonglong,
            })
        })
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerManagementLimitConstraints(
    device: Handle,
    min: *mut c_uint,
    max: *mut c_uint,
) -> u32 {
    // SAFETY: both are valid by NVML's contract.
    unsafe {
        let answered = answer(device, "limits", min, |state, i| {
            Ok(state.number(i, "power_limit_min_mw", 200_000) as c_uint)
        });
        if answered != SUCCESS {
            return answered;
        }
        answer(device, "limits", max, |state, i| {
            Ok(state.number(i, "power_limit_max_mw", 700_000) as c_uint)
        })
    }
}
