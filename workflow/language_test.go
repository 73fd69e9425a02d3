package workflow

import (
	"fmt"
	"strings"
	"testing"
)

// TestLanguagePage holds docs/language.md to the grammar; -update writes it.
func TestLanguagePage(t *testing.T) {
	golden(t, "../docs/language.md", []byte(languagePage()))
}

func languagePage() string {
	var b strings.Builder
	b.WriteString(`# The workflow language

What tgr reads of workflow files and action.yml. The tables are written from the grammar that the parser checks files
against (` + "`go test ./workflow -run LanguagePage -update`" + `), so they are what it does. For what the keys mean, see
[GitHub's reference](https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax).

Expressions may use the contexts and functions named with a key. The functions contains, startsWith, endsWith, format,
join, toJSON, fromJSON and case may be used in all of them; "status functions" are success, failure, always and
cancelled, of which success and failure take names of jobs in a job's if. A key without contexts takes no expression.

## Where tgr differs from GitHub

GitHub's parsers disagree with each other about some files; where they do, tgr accepts and warns.

- An unknown activity type, or a filter on an event that does not know it, is a warning: it can start nothing. So are an
  unknown key of workflow_dispatch, inputs of it without a value, branches together with branches-ignore, id-token: read,
  and a step that waits for a step that does not run in the background.
- Paths are matched against all changed files; GitHub looks at the first 300.
- A cron line that is due more often than every five minutes is a warning.
- A name in an expression that the file itself shows to be absent is a warning: a step, an output or a need, a key of the
  matrix, an input, or a property of github, runner, job and strategy. GitHub takes its value as empty.
- What anybody may write, such as github.head_ref, in a script is a warning: it can be made to run as a part of it.
- hashFiles leaves out links that lead nowhere, where GitHub's fails.
- A pattern that begins with ? or + takes that character as it is.
- include and exclude have at most ` + fmt.Sprint(maxEntries) + ` entries each.
- A time-out of a job that evaluates to nothing is the default; one of zero or less is an error, and more than
  ` + fmt.Sprint(MaxTimeout/60/24) + ` days count as ` + fmt.Sprint(MaxTimeout/60/24) + ` days.
- YAML merge keys (<<) are refused, as on GitHub; anchors and aliases work, also of whole jobs.

`)
	l := Limits{}.orDefaults()
	fmt.Fprintf(&b, "## Limits\n\n| What | At most |\n|---|---|\n| A file | %d KiB |\n| Nodes of a file, aliases expanded | %d |\n| Nesting | %d levels |\n| Jobs of a file, before matrices | %d |\n| Combinations of a matrix | %d |\n| Levels of reusable workflows | %d |\n| Reusable workflows of a run | %d |\n| Jobs of the workflows that a run calls, before matrices | %d |\n| Inputs of workflow_dispatch together | %d bytes |\n| Problems told of one file | %d |\n\n",
		l.Bytes>>10, l.Nodes, l.Depth, l.FileJobs, MaxMatrix, l.Calls, l.Callees, l.Jobs, maxDispatchInput, maxProblems)

	b.WriteString("## Events\n\n| Event | Activity types | Where none are written | Filters |\n|---|---|---|---|\n")
	for _, e := range eventKinds() {
		types, without := strings.Join(e.types, ", "), "all"
		switch {
		case e.name == "repository_dispatch":
			types = "any word"
		case len(e.types) == 0:
			types, without = "", ""
		case e.defaults != nil:
			without = strings.Join(e.defaults, ", ")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", e.name, types, without, strings.Join(e.filters, ", "))
	}
	b.WriteString("\nschedule takes a sequence of cron and timezone; workflow_dispatch takes inputs; workflow_call takes inputs, secrets\nand outputs.\n\n## Keys of a workflow\n\n")
	keyTable(&b, workflowShape())
	b.WriteString("\n## Keys of action.yml\n\n")
	keyTable(&b, actionShape())
	return b.String()
}

func keyTable(b *strings.Builder, root *shape) {
	b.WriteString("| Key | Takes | Contexts and functions |\n|---|---|---|\n")
	seen := map[string]bool{}
	var walk func(path string, s *shape, above allow)
	walk = func(path string, s *shape, above allow) {
		allowed := above | s.allow
		if path != "" && !seen[path] {
			seen[path] = true
			fmt.Fprintf(b, "| `%s` | %s | %s |\n", path, strings.ReplaceAll(s.name, "'", "`"), allowed.words())
		}
		if s.name == "anything" {
			return
		}
		if s.item != nil && len(s.item.maps) > 0 && s.item.name != "anything" {
			walk(path+"[]", s.item, allowed)
		}
		for _, m := range s.maps {
			for _, p := range m.props {
				if path == "on" && len(p.shape.maps) > 0 && strings.HasPrefix(p.shape.name, "filters") {
					continue // the table of events has them
				}
				walk(strings.TrimPrefix(path+"."+p.name, "."), p.shape, allowed)
			}
			if m.loose != nil && path != "" {
				walk(path+".*", m.loose, allowed)
			}
		}
	}
	walk("", root, 0)
}

// words are the contexts and functions of a set.
func (a allow) words() string {
	var out []string
	for bit := ctxGitHub; bit <= ctxJobs; bit <<= 1 {
		if a&bit != 0 {
			out = append(out, contextName(bit))
		}
	}
	if a&fnHashFiles != 0 {
		out = append(out, "hashFiles")
	}
	if a&(fnJobStatus|fnStepStatus) != 0 {
		out = append(out, "status functions")
	}
	return strings.Join(out, ", ")
}
