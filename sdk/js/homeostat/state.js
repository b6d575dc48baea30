// State that outlives requests, reloads and swaps. Needs `import
// wasi:keyvalue/store@0.2.0-draft;` and `import wasi:keyvalue/atomics@0.2.0-draft;` in
// world.wit and the grant "keyvalue".
import store from 'wasi:keyvalue/store@0.2.0-draft';
import atomics from 'wasi:keyvalue/atomics@0.2.0-draft';

/**
 * The bytes under a key; null when there are none.
 *
 * @param {string} key
 * @returns {Uint8Array | null}
 */
export function get(key) {
  return store.open('').get(key) ?? null;
}

/**
 * @param {string} key
 * @param {Uint8Array} value
 */
export function set(key, value) {
  store.open('').set(key, value);
}

/**
 * Adds to a counter and returns the sum; no other request can come between.
 *
 * @param {string} key
 * @param {number} delta
 * @returns {number}
 */
export function increment(key, delta) {
  return atomics.increment(store.open(''), key, delta);
}
