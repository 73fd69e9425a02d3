// Command logs makes the failing logs of this folder by really running the tools: it writes a small project for each,
// runs its job once as it is and once with each fault, and keeps what was printed. The line that tells the cause is the
// first one that holds the words which the fault names, a choice that is made before the log exists.
//
//	go run ./llm/testdata/logs llm/testdata/logs [project…]
//
// It needs bash and the tools themselves: go, node, npm, pytest, cargo, gcc, make, mvn, terraform. Nothing of it runs in a test.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// project is a job of several steps that succeeds, and the faults that make it fail.
type project struct {
	name   string
	files  map[string]string
	steps  []string // commands
	faults []fault
}

// fault is one edit that makes the job fail.
type fault struct {
	name  string
	edits []edit
	cause string // the cause line holds it
}

// edit replaces old by new in a file; with old empty the file becomes new.
type edit struct{ file, old, new string }

// entry is one line of the index.
type entry struct {
	Log     string `json:"log"`
	Tool    string `json:"tool"`
	Success string `json:"success"` // log of the same job when it succeeded
	Line    int    `json:"line"`    // of the cause, from 1
	Cause   string `json:"cause"`   // what that line holds
	Lines   int    `json:"lines"`
}

const home = "/home/runner/work/app/app"

func main() {
	if len(os.Args) < 2 {
		fail("usage: logs FOLDER [PROJECT…]")
	}
	out, only := os.Args[1], os.Args[2:]
	var index []entry
	if data, err := os.ReadFile(filepath.Join(out, "index.json")); err == nil {
		must(json.Unmarshal(data, &index))
	}
	for _, p := range []project{goProject(), nodeProject(), tscProject(), pytestProject(), cargoProject(), gccProject(), mavenProject(), terraformProject()} {
		if len(only) > 0 && !slices.Contains(only, p.name) {
			continue
		}
		index = slices.DeleteFunc(index, func(e entry) bool { return e.Tool == p.name })
		index = append(index, p.make(out)...)
		data, err := json.MarshalIndent(index, "", " ")
		must(err)
		must(os.WriteFile(filepath.Join(out, "index.json"), append(data, '\n'), 0o644))
	}
	fmt.Println(len(index), "failing logs")
}

func (p project) make(out string) []entry {
	ok, failed := p.run(fault{})
	if failed {
		fail("%s fails without a fault:\n%s", p.name, ok)
	}
	success := p.name + ".ok.log"
	must(os.WriteFile(filepath.Join(out, success), []byte(ok), 0o644))
	var entries []entry
	for _, f := range p.faults {
		log, failed := p.run(f)
		if !failed {
			fmt.Fprintf(os.Stderr, "%s/%s does not fail: left out\n", p.name, f.name)
			continue
		}
		e := entry{Log: p.name + "." + f.name + ".log", Tool: p.name, Success: success, Cause: f.cause}
		lines := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
		e.Lines = len(lines)
		e.Line = 1 + slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, f.cause) })
		if e.Line == 0 {
			fmt.Fprintf(os.Stderr, "%s/%s: no line has %q: left out\n%s\n", p.name, f.name, f.cause, tail(lines, 30))
			continue
		}
		must(os.WriteFile(filepath.Join(out, e.Log), []byte(log), 0o644))
		entries = append(entries, e)
		fmt.Printf("%s: %d lines, cause on %d\n", e.Log, e.Lines, e.Line)
	}
	return entries
}

// run does the job with a fault, as the runner does: bash -e for each step, groups, the exit status.
func (p project) run(f fault) (log string, failed bool) {
	dir, err := os.MkdirTemp("", "logs")
	must(err)
	defer os.RemoveAll(dir)
	for name, text := range p.files {
		write(dir, name, text)
	}
	for _, e := range f.edits {
		text := e.new
		if e.old != "" {
			data, err := os.ReadFile(filepath.Join(dir, e.file))
			must(err)
			if !strings.Contains(string(data), e.old) {
				fail("%s/%s: %s does not hold %q", p.name, f.name, e.file, e.old)
			}
			text = strings.Replace(string(data), e.old, e.new, 1)
		}
		write(dir, e.file, text)
	}
	var b strings.Builder
	for _, step := range append([]string{"git init -q . && git add -A && git -c user.name=a -c user.email=a@b.c commit -m 'the project' | head -60"}, p.steps...) {
		fmt.Fprintf(&b, "##[group]Run %s\n##[endgroup]\n", strings.SplitN(step, "\n", 2)[0])
		cmd := exec.Command("bash", "-e", "-o", "pipefail", "-c", step)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CI=true", "GOFLAGS=-mod=readonly", "GOPROXY=off", "NO_COLOR=1", "TF_IN_AUTOMATION=1", "TF_CLI_ARGS=-no-color", "TF_CLI_CONFIG_FILE=", "CARGO_TERM_COLOR=never", "npm_config_nodedir=")
		data, err := cmd.CombinedOutput()
		b.WriteString(strings.ReplaceAll(string(data), dir, home))
		if n := b.Len(); n > 0 && !strings.HasSuffix(b.String(), "\n") {
			b.WriteString("\n")
		}
		if err != nil {
			fmt.Fprintf(&b, "##[error]Process completed with exit code %d.\n", cmd.ProcessState.ExitCode())
			return b.String(), true
		}
	}
	return b.String(), false
}

func write(dir, name, text string) {
	path := filepath.Join(dir, name)
	must(os.MkdirAll(filepath.Dir(path), 0o755))
	must(os.WriteFile(path, []byte(text), 0o644))
}

func tail(lines []string, n int) string { return strings.Join(lines[max(0, len(lines)-n):], "\n") }

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}
