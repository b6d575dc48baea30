// A small router by heat and difficulty. The same in four languages: see the README one
// folder up.
import { plan, reject } from './homeostat/homeostat.js';

// Distances to the first slowdown, in °C, from which a device counts as hot or warm.
const HOT_CELSIUS = 5;
const WARM_CELSIUS = 15;
// Draft tokens where speculation is allowed.
const DRAFT_TOKENS = 4;
// When to try again, if nothing is ready.
const RETRY_MS = 1000;

/** @param {import('./homeostat/contract').Snapshot} snapshot */
function heat(snapshot) {
  const margins = snapshot.devices.map((d) => d.thermalMarginCelsius?.value ?? Infinity);
  const margin = Math.min(...margins);
  const { state } = snapshot.metabolism;
  if (state === 'constrained' || state === 'critical' || margin <= HOT_CELSIUS) return 'hot';
  if (state === 'elevated' || margin <= WARM_CELSIUS) return 'warm';
  return 'cool';
}

/** @type {import('./homeostat/contract').Router} */
export const router = {
  route(request, classification, tiers, snapshot) {
    const ready = tiers.filter((t) => t.ready);
    if (ready.length === 0) return reject('overloaded', 'no tier is ready', RETRY_MS);
    const last = ready.length - 1;
    const [wanted, word] =
      classification.pSimple >= 0.5
        ? [0, 'smallest']
        : classification.pComplex >= 0.5
          ? [last, 'largest']
          : [Math.floor(ready.length / 2), 'middle'];
    const now = heat(snapshot);
    const smaller = Math.max(wanted - 1, 0);
    const [asked, reason] = {
      hot: [ready.slice(0, 1), 'hot: only the smallest'],
      warm: [ready.slice(smaller, smaller + 1), 'warm: one size smaller'],
      cool: [ready.slice(wanted), `cool: from the ${word}`],
    }[now];
    const guess = now !== 'hot' && snapshot.metabolism.speculation !== 'avoid';
    const decision = plan(asked.map((t) => t.id), reason);
    decision.val.steps.forEach((step, i) => {
      step.maxDraftTokens = guess && asked[i].canSpeculate ? DRAFT_TOKENS : 0;
    });
    return decision;
  },
};
