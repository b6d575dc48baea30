//! The questions that are put to NVML, each in one place: what it is called, how it is
//! asked, what its raw answer looks like.
//!
//! Where the wrapper lacks a call, hides a part of it (the scope of a power field) or
//! decodes it wrongly (negative values, unknown bits), the call goes through the bindings.

#![allow(
    unsafe_code,
    reason = "calls that the wrapper lacks or decodes wrongly go through the bindings"
)]

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{
    Clock, PerformancePolicy, TemperatureSensor, TemperatureThreshold,
};
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{nvmlFieldValue_t, nvmlMarginTemperature_t};
use serde::Serialize;

/// Every call on a device, so that one that a board does not support is asked once and not
/// ten times a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Name,
    MaxClock,
    FastFields,
    Violations,
    Limits,
    SlowdownThreshold,
    OperatingThreshold,
    Temperature,
    Margin,
    Energy,
    AveragePower,
    Throttle,
    Clock,
    Memory,
    Utilization,
    PowerLimit,
    LimitField,
    PowerLimits,
    PerformanceState,
}

impl Call {
    /// Name in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Call::Name => "name",
            Call::MaxClock => "max_clock",
            Call::FastFields => "fields",
            Call::Violations => "violations",
            Call::Limits => "temperature_limits",
            Call::SlowdownThreshold => "threshold_slowdown",
            Call::OperatingThreshold => "threshold_gpu_max",
            Call::Temperature => "temperature",
            Call::Margin => "margin",
            Call::Energy => "energy",
            Call::AveragePower => "power_usage",
            Call::Throttle => "clock_event_reasons",
            Call::Clock => "clock_sm",
            Call::Memory => "memory",
            Call::Utilization => "utilization",
            Call::PowerLimit => "enforced_power_limit",
            Call::LimitField => "power_limit_field",
            Call::PowerLimits => "power_limit_constraints",
            Call::PerformanceState => "performance_state",
        }
    }
}

/// Which part of a board a power field concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scope {
    Gpu,
    /// GPU, memory and a processor beside them on one module.
    Module,
    Memory,
}

/// A field by NVIDIA's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Field {
    pub id: u32,
    pub scope: Scope,
}

impl Field {
    pub const fn new(id: u32) -> Self {
        Self {
            id,
            scope: Scope::Gpu,
        }
    }

    pub const fn of(id: u32, scope: Scope) -> Self {
        Self { id, scope }
    }
}

/// What a driver says to one field.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct FieldAnswer {
    pub field: Field,
    pub value: Option<f64>,
    /// NVML's return code; 0 = there is a value.
    pub status: u32,
    /// When the driver says that the value was taken, µs of the wall clock.
    pub sampled_unix_us: i64,
    /// What the driver says that it took, µs.
    pub latency_us: i64,
}

impl FieldAnswer {
    /// The board does not have this field, now or later.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            nvml_try(self.status),
            Err(NvmlError::NotSupported | NvmlError::InvalidArg | NvmlError::NoPermission)
        )
    }
}

/// The value of a field among the answers.
pub(super) fn value_of(answers: &[FieldAnswer], field: Field) -> Option<f64> {
    answers.iter().find(|answer| answer.field == field)?.value
}

/// Several fields in one call. The wrapper's own function cannot be used: it sets no scope
/// and takes a signed 32-bit value, which T.Limits are, for an error.
pub(super) fn fields(device: &Device<'_>, fields: &[Field]) -> Result<Vec<FieldAnswer>, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
    let ask = |field: &Field| {
        // SAFETY: a plain C structure of integers and a union of numbers, for which all
        // zeroes is a valid value.
        let mut value: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
        value.fieldId = field.id;
        value.scopeId = field.scope as u32;
        value
    };
    let mut values: Vec<nvmlFieldValue_t> = fields.iter().map(ask).collect();
    // SAFETY: the handle belongs to the library that `call` comes from and both are alive;
    // the vector has as many initialised elements as are stated, which the call overwrites.
    nvml_try(unsafe { call(device.handle(), values.len() as i32, values.as_mut_ptr()) })?;
    let answers = fields.iter().zip(&values);
    Ok(answers
        .map(|(&field, value)| FieldAnswer {
            field,
            value: decode(value),
            status: value.nvmlReturn,
            sampled_unix_us: value.timestamp,
            latency_us: value.latencyUsec,
        })
        .collect())
}

/// The value of one field after `nvmlValueType_t`.
fn decode(field: &nvmlFieldValue_t) -> Option<f64> {
    if nvml_try(field.nvmlReturn).is_err() {
        return None;
    }
    // SAFETY: every member of the union is a number for which all bit patterns are valid,
    // and the structure was zeroed, so all bytes are initialised.
    unsafe {
        Some(match field.valueType {
            0 => field.value.dVal,
            1 => f64::from(field.value.uiVal),
            2 => field.value.ulVal as f64,
            3 => field.value.ullVal as f64,
            4 => field.value.sllVal as f64,
            5 => f64::from(field.value.siVal),
            6 => f64::from(field.value.usVal),
            _ => return None,
        })
    }
}

/// How far the board is from its operating limit, °C; exists since driver 570.
pub(super) fn margin(device: &Device<'_>) -> Result<i32, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetMarginTemperature.as_ref())?;
    let mut margin = nvmlMarginTemperature_t {
        version: size_of::<nvmlMarginTemperature_t>() as u32 | 1 << 24,
        marginTemperature: 0,
    };
    // SAFETY: the handle belongs to the library that `call` comes from and both are alive;
    // `margin` is writable and states its version as the call demands.
    nvml_try(unsafe { call(device.handle(), &mut margin) })?;
    Ok(margin.marginTemperature)
}

/// Why clocks are low now, all bits as they come: the wrapper drops those that it does not
/// know.
pub(super) fn clock_event_reasons(device: &Device<'_>) -> Result<u64, NvmlError> {
    let library = device.nvml().lib();
    let symbol = library.nvmlDeviceGetCurrentClocksThrottleReasons.as_ref();
    let call = nvml_sym(symbol)?;
    let mut bits = 0;
    // SAFETY: the handle belongs to the library that `call` comes from and both are alive;
    // `bits` is writable.
    nvml_try(unsafe { call(device.handle(), &mut bits) })?;
    Ok(bits)
}

pub(super) fn temperature(device: &Device<'_>) -> Result<u32, NvmlError> {
    device.temperature(TemperatureSensor::Gpu)
}

pub(super) fn slowdown_threshold(device: &Device<'_>) -> Result<u32, NvmlError> {
    device.temperature_threshold(TemperatureThreshold::Slowdown)
}

pub(super) fn operating_threshold(device: &Device<'_>) -> Result<u32, NvmlError> {
    device.temperature_threshold(TemperatureThreshold::GpuMax)
}

pub(super) fn clock(device: &Device<'_>) -> Result<u32, NvmlError> {
    device.clock_info(Clock::SM)
}

pub(super) fn max_clock(device: &Device<'_>) -> Result<u32, NvmlError> {
    device.max_clock_info(Clock::SM)
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Memory {
    pub used: u64,
    pub total: u64,
    pub reserved: u64,
}

pub(super) fn memory(device: &Device<'_>) -> Result<Memory, NvmlError> {
    device.memory_info().map(|memory| Memory {
        used: memory.used,
        total: memory.total,
        reserved: memory.reserved,
    })
}

/// Busy shares over the driver's own window (1/6 s to 1 s), %.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Utilization {
    pub gpu: u32,
    pub memory: u32,
}

pub(super) fn utilization(device: &Device<'_>) -> Result<Utilization, NvmlError> {
    device.utilization_rates().map(|rates| Utilization {
        gpu: rates.gpu,
        memory: rates.memory,
    })
}

/// Between which limits an operator may choose, mW.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct PowerLimits {
    pub min: u32,
    pub max: u32,
}

pub(super) fn power_limits(device: &Device<'_>) -> Result<PowerLimits, NvmlError> {
    let limits = device.power_management_limit_constraints()?;
    Ok(PowerLimits {
        min: limits.min_limit,
        max: limits.max_limit,
    })
}

pub(super) fn performance_state(device: &Device<'_>) -> Result<u32, NvmlError> {
    device.performance_state().map(|state| state.as_c())
}

/// Time that a policy held the clocks down so far, ns.
pub(super) fn violation(device: &Device<'_>, policy: PerformancePolicy) -> Result<u64, NvmlError> {
    device
        .violation_status(policy)
        .map(|status| status.violation_time)
}
