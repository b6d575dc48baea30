// Always the smallest tier that is ready.
import type { Router } from './homeostat/contract.js';
import { fail, plan } from './homeostat/homeostat.js';

export const router: Router = {
  route(request, classification, tiers, snapshot) {
    const tier = tiers.find((t) => t.ready) ?? fail('no tier is ready');
    return plan([tier.id], 'always the smallest');
  },
};
