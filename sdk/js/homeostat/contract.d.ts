// Made from wit/ by `cargo run -p homeostat-author --example contract`: do not edit.
//
// Absent is null, never undefined; a u64 above 2^53 loses its last digits.

/** A value of an extension attribute. */
export type Value =
  /** True or false. */
  | { tag: 'boolean'; val: boolean }
  /** A whole number. */
  | { tag: 'integer'; val: number }
  /** A finite number; the host refuses NaN and infinities. */
  | { tag: 'number'; val: number }
  /** Text. */
  | { tag: 'text'; val: string };

/**
 * A named extension. Keys are lower case with dots; keys that begin with
 * `homeostat.` are defined by the host, all others are free.
 */
export type Attribute = [string, Value];

/** Why a call failed. An error is a value: the policy may go on without. */
export type ContractError =
  /** The operator did not grant this power to this policy. */
  | { tag: 'denied'; val: string }
  /** It exists, but cannot answer now (model not loaded, queue full). */
  | { tag: 'unavailable'; val: string }
  /** The arguments are wrong; the text says which and why. */
  | { tag: 'invalid-argument'; val: string }
  /** A limit of this call was reached; the text names it. */
  | { tag: 'limit-exceeded'; val: string }
  /** The host failed; not the policy's fault. */
  | { tag: 'internal'; val: string }
  /** Anything that a later version may add. */
  | { tag: 'other'; val: string };

/** Who speaks. */
export type Role =
  | 'system'
  | 'user'
  | 'assistant'
  | 'tool';

/** One message of a conversation. */
export interface Message {
  /** Who speaks. */
  role: Role;
  /** The text. Long texts are cut in the middle: see `request.cut-bytes`. */
  content: string;
}

/** Which endpoint the request came through. */
export type Endpoint =
  | 'chat'
  | 'completion';

/** The form in which the application wants the answer. */
export type ResponseFormat =
  | 'text'
  | 'json-object'
  | 'json-schema';

/** A checked request, as every hook of it sees it. */
export interface Request {
  /** Unique id, the same that the client receives. */
  id: string;
  /** Where it came in. */
  endpoint: Endpoint;
  /** The model that the client named: a tier id, or `auto`. */
  model: string;
  /** The conversation, oldest first. */
  messages: Message[];
  /**
   * Bytes of message text that were left out of `messages` because the
   * request is longer than the host shows to policies; 0 = nothing.
   */
  cutBytes: number;
  /** Most new tokens that the client wants. */
  maxTokens: number | null;
  /** Sampling temperature, 0 or more. */
  temperature: number;
  /** Form of the answer. */
  responseFormat: ResponseFormat;
  /** Whether the client reads the answer as a stream. */
  stream: boolean;
  /** Who pays, when the server knows. */
  tenant: string | null;
  /** Time that is left to answer, when the client set a deadline. */
  deadlineMs: number | null;
  /** Extensions. */
  attributes: Attribute[];
}

/** Where a number comes from. */
export type Origin =
  | 'measured'
  | 'derived'
  | 'modelled'
  | 'simulated';

/** One reading with its provenance. */
export interface Sample {
  /** The value, in the unit that the field's name states. */
  value: number;
  /** Age when the snapshot was taken. */
  ageMs: number;
  /** Time over which the value was averaged; 0 = instant. */
  windowMs: number;
  /** Where it comes from. */
  origin: Origin;
  /** Relative standard error where known; 0.05 = 5 %. */
  relativeError: number | null;
}

/** What kind of device a reading belongs to. */
export type DeviceKind =
  | 'gpu'
  | 'cpu'
  | 'soc'
  | 'npu'
  | 'host'
  | 'external';

/** Whether a device's readings can be trusted. */
export type Health =
  | 'ok'
  | 'degraded'
  | 'stale'
  | 'lost';

/** Why a device runs slower than it could. */
export interface ThrottleReasons {
  /** Software slows it down to keep it cool. */
  thermalSoftware: boolean;
  /** Hardware slows it down because it is too hot. */
  thermalHardware: boolean;
  /** A power limit is reached. */
  powerCap: boolean;
  /** An external power brake is on. */
  powerBrake: boolean;
  /** The supply voltage is too low. */
  undervoltage: boolean;
  /** A reason that is none of the above. */
  other: boolean;
}

/** What the host expects of a device's temperature. */
export interface Forecast {
  /** How far ahead. */
  horizonMs: number;
  /** Expected distance to the first slowdown; may be negative. */
  marginCelsius: number;
  /** When the slowdown is expected, if it is within 300 s. */
  timeToThrottleMs: number | null;
  /** Root mean square error of this forecast so far. */
  rmseCelsius: number;
}

/** One device. */
export interface Device {
  /** Stable id such as `gpu.0`, `cpu.package-0`. */
  id: string;
  /** Kind. */
  kind: DeviceKind;
  /** Model name as the driver tells it. */
  model: string;
  /** Trust. */
  health: Health;
  /** Core temperature. */
  temperatureCelsius: Sample | null;
  /** Memory temperature. */
  memoryTemperatureCelsius: Sample | null;
  /** Distance to the first slowdown; may be negative. */
  thermalMarginCelsius: Sample | null;
  /** Power drawn. */
  powerWatts: Sample | null;
  /** Power limit in force. */
  powerLimitWatts: Sample | null;
  /** Energy since the host started. */
  energyJoules: Sample | null;
  /** Busy share, 0 to 1. */
  utilizationRatio: Sample | null;
  /** Memory in use. */
  memoryUsedBytes: number | null;
  /** Memory in all. */
  memoryTotalBytes: number | null;
  /** Clock as a share of its maximum, 0 to 1. */
  clockRatio: Sample | null;
  /** Why it is slow now; `none` = the device cannot tell. */
  throttle: ThrottleReasons | null;
  /** What is expected; `none` until enough was learned. */
  forecast: Forecast | null;
}

/** Pressure on shared resources. */
export interface Pressure {
  /** Share of the last second in which some task waited for CPU (PSI). */
  cpuSomeRatio: number | null;
  /** The same for memory. */
  memorySomeRatio: number | null;
  /** Share in which all tasks waited for memory. */
  memoryFullRatio: number | null;
  /** Share in which some task waited for IO. */
  ioSomeRatio: number | null;
  /** Memory in use by this machine or container. */
  memoryUsedBytes: number | null;
  /** What may be used: the smaller of RAM and the container's limit. */
  memoryLimitBytes: number | null;
  /** Swap in use. */
  swapUsedBytes: number | null;
  /** Occupied share of the KV cache over all local tiers, 0 to 1. */
  kvUsedRatio: number | null;
}

/** Where the electricity comes from. Absent where there is no battery. */
export interface Supply {
  /** Running on battery. */
  onBattery: boolean;
  /** Charge, 0 to 1. */
  chargeRatio: number | null;
  /** Power drawn from the battery. */
  drainWatts: number | null;
  /** Time left at this drain. */
  timeLeftS: number | null;
}

/** What a budget counts. */
export type BudgetUnit =
  | 'joules'
  | 'watts'
  | 'usd'
  | 'grams-co2'
  | 'tokens';

/** One budget that concerns this request. */
export interface Budget {
  /** `host`, or the tenant it belongs to. */
  scope: string;
  /** What it counts. */
  unit: BudgetUnit;
  /** The limit of the present window. */
  limit: number;
  /** What is used of it. */
  used: number;
  /** Time until the window starts anew. */
  windowLeftS: number | null;
}

/** How the machine feels, worst cause first. */
export type MetabolicState =
  | 'nominal'
  | 'elevated'
  | 'constrained'
  | 'critical';

/** Why the state is not nominal. */
export interface Cause {
  /** Heat. */
  thermal: boolean;
  /** Power near its limit. */
  power: boolean;
  /** A budget runs out. */
  budget: boolean;
  /** Battery. */
  battery: boolean;
  /** Memory. */
  memory: boolean;
  /** A sensor is lost: the host does not know. */
  sensor: boolean;
}

/** Whether the host finds speculation worth its energy now. */
export type SpeculationHint =
  | 'prefer'
  | 'neutral'
  | 'avoid';

/** The metabolic state with its reasons. */
export interface Metabolism {
  /** State, with hysteresis. */
  state: MetabolicState;
  /** All causes that hold. */
  causes: Cause;
  /** Risk of slowdown, 0 to 1. */
  risk: number;
  /** Share of traffic that should move to smaller tiers, 0 to 1. */
  degradeRatio: number;
  /** Speculation. */
  speculation: SpeculationHint;
  /** How long the state holds. */
  sinceMs: number;
}

/** Which kind of machine the operator says this is. */
export type Profile =
  | 'datacenter'
  | 'edge'
  | 'mcu';

/**
 * Everything the host knows about the machine at one moment. All hooks of one
 * request see the same snapshot.
 */
export interface Snapshot {
  /** Grows by one with every sampling. */
  sequence: number;
  /** Monotonic time of the sampling since the host started. */
  monotonicMs: number;
  /** Profile. */
  profile: Profile;
  /** Devices; empty where no sensor exists. */
  devices: Device[];
  /** Pressure. */
  pressure: Pressure;
  /** Battery; `none` where there is none. */
  supply: Supply | null;
  /** Budgets that concern this request. */
  budgets: Budget[];
  /** State. */
  metabolism: Metabolism;
  /** True when any value comes from a simulated machine. */
  simulated: boolean;
  /**
   * Extensions. `homeostat.unix-seconds` is the time of day, in whole seconds since
   * 1970 in UTC.
   */
  attributes: Attribute[];
}

/** The task types of NVIDIA's prompt classifier. */
export type Task =
  | 'open-qa'
  | 'closed-qa'
  | 'summarization'
  | 'text-generation'
  | 'code-generation'
  | 'chatbot'
  | 'classification'
  | 'rewrite'
  | 'brainstorming'
  | 'extraction'
  | 'other';

/** A named score from 0 to 1, such as `reasoning` or `constraints`. */
export type Dimension = [string, number];

/** How hard a request is. */
export interface Classification {
  /** Probability that a small model suffices. */
  pSimple: number;
  /** Probability that it takes a medium one. */
  pMedium: number;
  /** Probability that it takes the largest. The three add up to 1 (± 0.01). */
  pComplex: number;
  /** What is asked for. */
  task: Task;
  /** Scored dimensions. */
  dimensions: Dimension[];
  /** How far the classifier trusts itself, 0 to 1; low = out of its experience. */
  confidence: number;
  /** Extensions. */
  attributes: Attribute[];
}

/** Where a tier runs. */
export type TierKind =
  | 'local'
  | 'remote'
  | 'simulated';

/** A served model at one quality and cost, as the router sees it. */
export interface Tier {
  /** Id, unique. */
  id: string;
  /** Where it runs. */
  kind: TierKind;
  /** Model name. */
  model: string;
  /** Order by size; 0 is the smallest. */
  rank: number;
  /**
   * Expected share of good answers on simple, medium and complex requests,
   * each 0 to 1, as the operator states or the host has learned.
   */
  quality: [number, number, number];
  /** Parameters of the model. */
  parameters: number | null;
  /** Most tokens of prompt and answer together. */
  contextTokens: number;
  /** Answers at present. */
  ready: boolean;
  /** Sequences running. */
  numRequestsRunning: number;
  /** Sequences waiting. */
  numRequestsWaiting: number;
  /** Expected time to the first token. */
  ttftMs: Sample | null;
  /** Expected time per output token. */
  tpotMs: Sample | null;
  /** Expected energy per output token. */
  joulesPerToken: Sample | null;
  /** Price of a million prompt tokens. */
  usdPerMtokPrompt: number | null;
  /** Price of a million output tokens. */
  usdPerMtokOutput: number | null;
  /** Can draft and verify. */
  canSpeculate: boolean;
  /** Gives log-probabilities of its tokens. */
  givesLogprobs: boolean;
  /** Extensions. */
  attributes: Attribute[];
}

/** One step of a plan. */
export interface Step {
  /** Tier id, one of the candidates. */
  tier: string;
  /** Draft tokens a step may verify; 0 = no speculation. */
  maxDraftTokens: number;
  /** Cap on new tokens; the client's own cap holds as well. */
  maxTokens: number | null;
  /**
   * Keep back at least this many tokens while the answer may still be
   * escalated. The host keeps back the whole answer wherever the next step
   * could not continue a begun one.
   */
  holdBackTokens: number;
  /**
   * Confidence from which the answer is accepted, 0 to 1. For the last step
   * it is only recorded.
   */
  acceptThreshold: number;
}

/** Steps, tried in order until an answer is accepted. */
export interface Plan {
  /** One to eight steps. */
  steps: Step[];
  /** Why, for people. */
  reason: string;
  /** Extensions. */
  attributes: Attribute[];
}

/** An answer that needs no model. */
export interface DirectAnswer {
  /** The whole answer. */
  text: string;
  /** How it was found, such as `arithmetic`. */
  method: string;
}

/** Why a request is not served. */
export type Refusal =
  | 'overloaded'
  | 'budget-exhausted'
  | 'not-allowed'
  | 'unsupported'
  | 'unreliable';

/** A refusal with its reason. */
export interface Rejection {
  /** Kind. */
  kind: Refusal;
  /** For the client. */
  message: string;
  /** When it may try again. */
  retryAfterMs: number | null;
}

/** What is done with a request. */
export type Decision =
  /** Ask these tiers. */
  | { tag: 'plan'; val: Plan }
  /** Answer at once. */
  | { tag: 'answer'; val: DirectAnswer }
  /** Refuse. */
  | { tag: 'reject'; val: Rejection };

/** Why a tier stopped. */
export type Finish =
  | 'unfinished'
  | 'stop'
  | 'length';

/** An answer, whole or in part. */
export interface Answer {
  /** Which step of the plan gave it, from 0. */
  step: number;
  /** How many steps could still follow. */
  stepsLeft: number;
  /** Which tier. */
  tier: string;
  /** The text so far. */
  text: string;
  /** Why it ended. */
  finish: Finish;
  /**
   * Natural logarithm of the probability of every token; empty when the tier
   * does not tell.
   */
  logprobs: number[];
  /** The step's `accept-threshold`. */
  acceptThreshold: number;
  /** Extensions. */
  attributes: Attribute[];
}

/** One check of a validator. */
export interface Finding {
  /** Name of the check, such as `arithmetic`. */
  check: string;
  /** Whether the answer passed it. */
  passed: boolean;
  /** What was found, for people. */
  detail: string;
}

/** How good the answer is. */
export interface Assessment {
  /** Probability that the answer is right, 0 to 1. */
  confidence: number;
  /** What was checked. */
  findings: Finding[];
}

/** A better text for the answer. */
export interface Amendment {
  /** The whole new text. */
  text: string;
  /** How good it is. */
  assessment: Assessment;
}

/** What is done with an answer. */
export type Verdict =
  /** Send it. */
  | { tag: 'accept'; val: Assessment }
  /** Ask the next tier; the last step's answer is sent all the same. */
  | { tag: 'escalate'; val: Assessment }
  /** Send this text instead. */
  | { tag: 'amend'; val: Amendment }
  /** Send nothing; tell the client why. */
  | { tag: 'reject'; val: Rejection }
  /** A partial answer: nothing to say yet. */
  | { tag: 'undecided' };

/** What became of a request, for policies that learn. */
export interface Outcome {
  /** Tier whose answer was sent; `none` = direct answer or refusal. */
  tier: string | null;
  /** Steps that were tried. */
  stepsTried: number;
  /** Confidence of the answer that was sent. */
  confidence: number | null;
  /** Tokens of the prompt. */
  promptTokens: number;
  /** Tokens generated over all steps. */
  generatedTokens: number;
  /** Time to the first token that the client saw. */
  ttftMs: number | null;
  /** Time of the whole request. */
  totalMs: number;
  /** Energy of all its answers, where the host can tell; not what policies asked models. */
  joules: Sample | null;
}

/** How hard is this request? */
export interface Classifier {
  /**
   * Called once for every request, before `route`.
   * @throws {ContractError}
   */
  classify(request: Request, snapshot: Snapshot): Classification;
}

/** Which tier should answer, and how? */
export interface Router {
  /**
   * Called once for every request. `tiers` holds the candidates, smallest first;
   * a plan may name no other.
   * @throws {ContractError}
   */
  route(request: Request, classification: Classification, tiers: Tier[], snapshot: Snapshot): Decision;
}

/** Is this answer good enough to send? */
export interface Validator {
  /**
   * Called when a step of the plan has answered.
   * @throws {ContractError}
   */
  validate(request: Request, answer: Answer, snapshot: Snapshot): Verdict;
}

/**
 * What became of it? For policies that learn; what they learn they keep in
 * `wasi:keyvalue`, since an instance lives for one request.
 */
export interface Learner {
  /** Called once after the answer was sent, outside the client's time. */
  learn(request: Request, outcome: Outcome): void;
}

/**
 * For policies whose state changes its form between versions. A component exports it
 * beside its hooks. Each version has a state of its own under the policy's name, so an
 * upgrade destroys nothing, and whoever goes back finds what was left.
 */
export interface StateMigration {
  /**
   * The version of the form in which this component keeps its state: 1 to 1000. What
   * components without this interface keep is version 0.
   */
  version(): number;
  /**
   * Called before the component serves, where there is state of older versions only:
   * `wasi:keyvalue` then holds a copy of the newest of them, and what this function makes
   * of it becomes the state of this version. It is first tried before the golden inputs,
   * which see its result. An error refuses the component; the older state stays as it
   * was, and so does the policy that serves.
   * @throws {ContractError}
   */
  migrate(fromVersion: number): void;
}

/** How a short text is generated. */
export interface GenerateOptions {
  /** At most this many new tokens; the host allows at most 256. */
  maxTokens: number;
  /** 0 = always the likeliest token. */
  temperature: number;
  /** Same seed, same text. */
  seed: number;
  /** The text ends before any of these. */
  stop: string[];
}

/** A short generated text. */
export interface Generated {
  /** The text. */
  text: string;
  /** Natural logarithm of the probability of every token. */
  logprobs: number[];
  /** Ended by itself, not by `max-tokens`. */
  finished: boolean;
}

/** One served model. */
export interface Model {
  /**
   * The tier as a router would see it now; encoders answer `unavailable`.
   * @throws {ContractError}
   */
  info(): Tier;
  /**
   * Tokens of `text` in this model's vocabulary.
   * @throws {ContractError}
   */
  countTokens(text: string): number;
  /**
   * Embedding of unit length. Only encoders.
   * @throws {ContractError}
   */
  embed(text: string): number[];
  /**
   * Natural logarithm of the probability of every token of `continuation`
   * after `prompt`. Only local generative tiers.
   * @throws {ContractError}
   */
  score(prompt: string, continuation: string): number[];
  /**
   * Continue `prompt`; no chat template is applied.
   * @throws {ContractError}
   */
  generate(prompt: string, options: GenerateOptions): Generated;
}

/**
 * Handles on the host's models. Needs the grant `models`: without it every call
 * answers `error.denied`.
 */
export interface Models {
  /**
   * Ids of all models, encoders included.
   * @throws {ContractError}
   */
  names(): string[];
  /**
   * A handle on one of them.
   * @throws {ContractError}
   */
  open(name: string): Model;
}

/**
 * Publish a provisional answer. When the deadline comes first, or the call traps
 * afterwards, the last valid proposal is used instead of the fallback. This makes
 * slow policies safe.
 */
export interface Propose {
  /** Inside `classify`. */
  proposeClassification(proposal: Classification): void;
  /** Inside `route`. */
  proposeDecision(proposal: Decision): void;
  /** Inside `validate`. */
  proposeVerdict(proposal: Verdict): void;
}

/**
 * The machine, at the moment the request came in. Every hook receives this snapshot
 * as an argument as well; the import serves code that sits deeper in a policy.
 */
export interface Telemetry {
  /** The same immutable snapshot at every call of one request. */
  current(): Snapshot;
}
