// node build.mjs SOURCE WIT WORLD OUT: one JavaScript module to one component. Imports are
// found below the working directory.
import { readFileSync, writeFileSync } from 'node:fs';
import { componentize } from 'componentize-qjs';

const [source, witPath, world, out] = process.argv.slice(2);
try {
  const { component } = await componentize({
    witPath,
    world,
    jsSource: readFileSync(source, 'utf8'),
    jsPath: source,
    moduleRoot: process.cwd(),
    stubWasi: true, // no clock, no files, no random numbers: same input, same answer
    sync: true, // the host calls policies one at a time
  });
  writeFileSync(out, component);
} catch (error) {
  console.error(String(error.message ?? error));
  process.exit(1);
}
