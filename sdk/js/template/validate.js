// An answer without text is no answer.
import { accept, escalate, finding } from './homeostat/homeostat.js';

/** @type {import('./homeostat/contract.js').Validator} */
export const validator = {
  validate(request, answer, snapshot) {
    const passed = answer.text.trim() !== '';
    const findings = [finding('not-empty', passed)];
    return passed ? accept(0.5, findings) : escalate(0, findings);
  },
};
