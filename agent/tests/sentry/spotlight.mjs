// Spotlight's server and page, without its command line, which reports to its makers.
// node spotlight.mjs HOME PORT
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [home, port] = process.argv.slice(2);
const folder = join(home, "node_modules/@spotlightjs/spotlight/dist");
const { setupSpotlight } = await import(pathToFileURL(join(folder, "server/main.js")));
const filesToServe = {};
for (const entry of readdirSync(join(folder, "ui"), { recursive: true, withFileTypes: true })) {
  if (entry.isFile()) {
    const path = join(entry.parentPath ?? entry.path, entry.name);
    filesToServe[path.slice(join(folder, "ui").length + 1)] = readFileSync(path);
  }
}
filesToServe["src/index.html"] ??= filesToServe["index.html"];
await setupSpotlight({ port: Number(port), filesToServe });
console.log("listening");
