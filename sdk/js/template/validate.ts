// An answer without text is no answer.
import type { Validator } from './homeostat/contract.js';
import { accept, escalate, finding } from './homeostat/homeostat.js';

export const validator: Validator = {
  validate(request, answer, snapshot) {
    const passed = answer.text.trim() !== '';
    const findings = [finding('not-empty', passed)];
    return passed ? accept(0.5, findings) : escalate(0, findings);
  },
};
