// Short questions are simple.
import { classification, question } from './homeostat/homeostat.js';

/** @type {import('./homeostat/contract.js').Classifier} */
export const classifier = {
  classify(request, snapshot) {
    const words = question(request).split(/\s+/).filter(Boolean).length;
    const complex = Math.min(words / 100, 1);
    return classification(1 - complex, 0, complex);
  },
};
