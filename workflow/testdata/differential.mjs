// Reads one workflow per line, {"src": …} as JSON, and answers with what GitHub's own parser for editors finds wrong:
// {"errors": [{"line", "column", "message"}]}. The first argument is a folder with node_modules in it.
import {register} from "node:module";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";
import {resolve} from "node:path";

// The package imports JSON as bundlers understand it and node does not.
register("data:text/javascript," + encodeURIComponent(`
  import {readFile} from "node:fs/promises";
  export const load = async (url, context, next) => url.endsWith(".json")
    ? {format: "module", shortCircuit: true, source: "export default " + await readFile(new URL(url), "utf8")}
    : next(url, context);
`));

const dist = p => pathToFileURL(resolve(process.argv[2], "node_modules/@actions", p));
const {parseWorkflow, convertWorkflowTemplate, NoOperationTraceWriter} = await import(dist("workflow-parser/dist/index.js"));
const {TemplateContext, TemplateValidationErrors} = await import(dist("workflow-parser/dist/templates/template-context.js"));
const {getWorkflowSchema} = await import(dist("workflow-parser/dist/workflows/workflow-schema.js"));
const {FeatureFlags} = await import(dist("expressions/dist/features.js"));

const featureFlags = new FeatureFlags({all: true});
for await (const line of createInterface({input: process.stdin})) {
  const {src} = JSON.parse(line);
  let errors = [];
  try {
    const context = new TemplateContext(new TemplateValidationErrors(), getWorkflowSchema(), new NoOperationTraceWriter());
    context.state.featureFlags = featureFlags;
    const r = parseWorkflow({name: "w.yml", content: src}, context);
    if (r.value) {
      await convertWorkflowTemplate(r.context, r.value, undefined, {featureFlags});
    }
    errors = r.context.errors.getErrors().map(e => {
      const place = /\(Line: (\d+), Col: (\d+)\)/.exec(e.prefix ?? "");
      return {line: place ? +place[1] : e.range?.start.line ?? 0, column: place ? +place[2] : e.range?.start.column ?? 0,
        message: e.rawMessage ?? e.message};
    });
  } catch (e) {
    errors = [{line: 0, column: 0, message: "thrown: " + e}];
  }
  process.stdout.write(JSON.stringify({errors}) + "\n");
}
