// Reads {"dir": …, "patterns": "a\nb", "follow": …} line by line and answers with what GitHub's own hashFiles makes of it:
// {"hash": …} or {"error": …}. The first argument is a folder with node_modules in it.
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";
import {resolve} from "node:path";

const {hashFiles} = await import(pathToFileURL(resolve(process.argv[2], "node_modules/@actions/glob/lib/glob.js")));
const answers = process.stdout.write.bind(process.stdout);
process.stdout.write = () => true; // the package's debug messages
for await (const line of createInterface({input: process.stdin})) {
  const {dir, patterns, follow} = JSON.parse(line);
  process.chdir(dir);
  let answer;
  try {
    answer = {hash: await hashFiles(patterns, dir, {followSymbolicLinks: follow})};
  } catch (e) {
    answer = {error: String(e)};
  }
  answers(JSON.stringify(answer) + "\n");
}
