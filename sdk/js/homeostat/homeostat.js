// Pleasant ways to say what the contract asks for. Everything here is plain data: what an
// answer looks like is in contract.d.ts, and no function knows more than its arguments.
//
// Rules of the contract in JavaScript: what is absent is null, never undefined; an enum is
// a text such as 'not-allowed'; a variant is { tag, val }; an error is thrown.

/**
 * A plan that tries these tiers in order, with the host's defaults and a threshold of one
 * half; `step` changes fields of every step.
 *
 * @param {string[]} tiers
 * @param {string} reason
 * @param {Partial<import('./contract.js').Step>} [step]
 * @returns {{ tag: 'plan', val: import('./contract.js').Plan }}
 */
export function plan(tiers, reason, step = {}) {
  const steps = tiers.map((tier) => ({
    tier,
    maxDraftTokens: 0,
    maxTokens: null,
    holdBackTokens: 0,
    acceptThreshold: 0.5,
    ...step,
  }));
  return { tag: 'plan', val: { steps, reason, attributes: [] } };
}

/**
 * An answer that needs no model.
 *
 * @param {string} text
 * @param {string} method how it was found
 * @returns {import('./contract.js').Decision}
 */
export function answer(text, method) {
  return { tag: 'answer', val: { text, method } };
}

/**
 * A refusal; a decision and a verdict alike.
 *
 * @param {import('./contract.js').Refusal} kind
 * @param {string} message
 * @param {number | null} [retryAfterMs]
 * @returns {{ tag: 'reject', val: import('./contract.js').Rejection }}
 */
export function reject(kind, message, retryAfterMs = null) {
  return { tag: 'reject', val: { kind, message, retryAfterMs } };
}

/**
 * How hard a request is. The three probabilities are made to add up to 1.
 *
 * @param {number} simple
 * @param {number} medium
 * @param {number} complex
 * @param {Partial<import('./contract.js').Classification>} [rest]
 * @returns {import('./contract.js').Classification}
 */
export function classification(simple, medium, complex, rest = {}) {
  const sum = simple + medium + complex;
  return {
    pSimple: simple / sum,
    pMedium: medium / sum,
    pComplex: complex / sum,
    task: 'other',
    dimensions: [],
    confidence: 0.5,
    attributes: [],
    ...rest,
  };
}

/**
 * One check of a validator.
 *
 * @param {string} check
 * @param {boolean} passed
 * @param {string} [detail]
 * @returns {import('./contract.js').Finding}
 */
export function finding(check, passed, detail = '') {
  return { check, passed, detail };
}

/**
 * Send the answer.
 *
 * @param {number} confidence
 * @param {import('./contract.js').Finding[]} [findings]
 * @returns {import('./contract.js').Verdict}
 */
export function accept(confidence, findings = []) {
  return { tag: 'accept', val: { confidence, findings } };
}

/**
 * Ask the next tier.
 *
 * @param {number} confidence
 * @param {import('./contract.js').Finding[]} [findings]
 * @returns {import('./contract.js').Verdict}
 */
export function escalate(confidence, findings = []) {
  return { tag: 'escalate', val: { confidence, findings } };
}

/**
 * Send this text instead.
 *
 * @param {string} text
 * @param {number} confidence
 * @param {import('./contract.js').Finding[]} [findings]
 * @returns {import('./contract.js').Verdict}
 */
export function amend(text, confidence, findings = []) {
  return { tag: 'amend', val: { text, assessment: { confidence, findings } } };
}

/**
 * The last message of the person; empty when there is none.
 *
 * @param {import('./contract.js').Request} request
 * @returns {string}
 */
export function question(request) {
  return request.messages.findLast((m) => m.role === 'user')?.content ?? '';
}

/**
 * Ends the call with an error: the host's fallback answers.
 *
 * @param {string} text
 * @returns {never}
 */
export function fail(text) {
  throw { tag: 'other', val: text };
}
