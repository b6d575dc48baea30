// Short questions are simple.
import type { Classifier } from './homeostat/contract.js';
import { classification, question } from './homeostat/homeostat.js';

export const classifier: Classifier = {
  classify(request, snapshot) {
    const words = question(request).split(/\s+/).filter(Boolean).length;
    const complex = Math.min(words / 100, 1);
    return classification(1 - complex, 0, complex);
  },
};
