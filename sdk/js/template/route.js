// Always the smallest tier that is ready.
import { fail, plan } from './homeostat/homeostat.js';

/** @type {import('./homeostat/contract.js').Router} */
export const router = {
  route(request, classification, tiers, snapshot) {
    const tier = tiers.find((t) => t.ready) ?? fail('no tier is ready');
    return plan([tier.id], 'always the smallest');
  },
};
