// Provisional answers: what was proposed last is used when the deadline comes first. Needs
// `import homeostat:policy/propose@0.1.0;` in world.wit.
import propose from 'homeostat:policy/propose@0.1.0';

/** @param {import('./contract').Classification} proposal inside classify */
export function classification(proposal) {
  propose.proposeClassification(proposal);
}

/** @param {import('./contract').Decision} proposal inside route */
export function decision(proposal) {
  propose.proposeDecision(proposal);
}

/** @param {import('./contract').Verdict} proposal inside validate */
export function verdict(proposal) {
  propose.proposeVerdict(proposal);
}
