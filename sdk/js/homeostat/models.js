// The host's models. Needs `import homeostat:policy/models@0.1.0;` in world.wit and the
// grant "models". Handles have the methods of `Model` in contract.d.ts.
import models from 'homeostat:policy/models@0.1.0';

/** @returns {string[]} ids of all models */
export function names() {
  return models.names();
}

/**
 * @param {string} name
 * @returns {import('./contract.js').Model}
 */
export function open(name) {
  return models.open(name);
}
