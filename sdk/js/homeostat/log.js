// One line to the host's log. Needs `import wasi:logging/logging@0.1.0-draft;` in world.wit.
import logging from 'wasi:logging/logging@0.1.0-draft';

/**
 * @param {'trace' | 'debug' | 'info' | 'warn' | 'error' | 'critical'} level
 * @param {string} message
 */
export function log(level, message) {
  logging.log(level, 'policy', message);
}
