// Settings of this policy. Needs `import wasi:config/store@0.2.0-rc.1;` in world.wit and
// the grant "config".
import store from 'wasi:config/store@0.2.0-rc.1';

/**
 * A setting; null when the operator has not set it.
 *
 * @param {string} key
 * @returns {string | null}
 */
export function config(key) {
  return store.get(key) ?? null;
}

/**
 * A setting that is a number between two others; `fallback` when it is not set. Anything else
 * ends the call: a policy that ignored a setting would seem to obey.
 *
 * @param {string} key
 * @param {number} fallback
 * @param {number} least
 * @param {number} most
 * @returns {number}
 */
export function number(key, fallback, least, most) {
  const text = config(key);
  if (text === null) return fallback;
  const value = text.trim() === '' ? NaN : Number(text);
  return value >= least && value <= most ? value : wrong(key, text, `${least} to ${most}`);
}

/**
 * Ends the call, since a setting cannot be read.
 *
 * @param {string} key
 * @param {string} value
 * @param {string} expected
 * @returns {never}
 */
export function wrong(key, value, expected) {
  throw { tag: 'invalid-argument', val: `setting ${key} is "${value}", expected ${expected}` };
}
