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
