package runner_test

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr/workflow"
)

// TestAct holds what the scenarios say of act to what the act at TGR_ACT does in its host mode. "yes" is for whose
// job ends as ours does and whose steps print the same lines. A scenario that differs says "no" or "partly", and so may one
// whose point is neither of the two, such as an annotation. Silent are only scenarios whose steps print nothing.
func TestAct(t *testing.T) {
	act := os.Getenv("TGR_ACT")
	if act == "" {
		t.Skip("TGR_ACT is not set: the path of act 0.2.89 (go install github.com/nektos/act@v0.2.89)")
	}
	eachScenario(t, func(t *testing.T, _ string, a *txtar.Archive) {
		said := ""
		if m := saidOfAct.FindSubmatch(a.Comment); m != nil {
			said = string(m[1])
		}
		want, got := outcomeOf(string(find(a, "want"))), newActRun(t, act, a).outcome(t)
		diff := cmp.Diff(want, got)
		switch {
		case diff != "" && (said == "" || said == "yes"):
			t.Errorf("the scenario says %q of act, which differs: -want +act:\n%s", said, diff)
		case diff == "" && said == "" && len(want.Lines) > 0:
			t.Error("the scenario says nothing of act, which does the same")
		}
	})
}

var saidOfAct = regexp.MustCompile(`(?m)^peers.* act=(\w+)`)

// outcome is what two programs that run one job have to agree on.
type outcome struct {
	Conclusion string
	Lines      []string // that steps print, without commands and what the programs say of themselves
}

var (
	stepLine   = regexp.MustCompile(`^\d+ (.*): (success|failure|cancelled|skipped)( |$)`)
	ourScript  = regexp.MustCompile(`\S*/_runner_file_commands/N/script\.sh`)
	actScript  = regexp.MustCompile(`\S*/act/workflow/\d+(\.\w+)?`)
	actFolder  = regexp.MustCompile(`\S*/cache/act/[0-9a-f]+/hostexecutor\b`)
	actItself  = regexp.MustCompile(`^Cannot find: \S+ in PATH$`)
	colour     = regexp.MustCompile(`\x1b\[[0-9;]*m`)
	actPatient = 30 * time.Second
)

// outcomeOf reads an outcome from the golden form of a result.
func outcomeOf(want string) (o outcome) {
	o.Conclusion, _, _ = strings.Cut(want, " ")
	step, header := "", false
	for line := range strings.Lines(want) {
		line = strings.TrimSuffix(line, "\n")
		if m := stepLine.FindStringSubmatch(line); m != nil {
			step = m[1]
			continue
		}
		text, ok := strings.CutPrefix(line, "\t")
		switch {
		case !ok || step == "Set up job" || step == "Complete job" || strings.Contains(step, "actions/checkout@"):
		case strings.HasPrefix(text, "##[group]Run "):
			header = true
		case text == "##[endgroup]":
			header = false
		case header || strings.HasPrefix(text, "##[") || text == "Post job cleanup.":
		default:
			o.Lines = append(o.Lines, ourScript.ReplaceAllString(text, "SCRIPT"))
		}
	}
	return o
}

// actRun is a scenario that act runs, on this host.
type actRun struct {
	base, repo string
	args       []string
	event      string // its name
	cancelAt   string // what a line says when the job is to be cancelled, "" for never
	sha        string
}

// newActRun writes a scenario's files as act takes them.
func newActRun(t *testing.T, act string, a *txtar.Archive) *actRun {
	t.Helper()
	if name := filepath.Base(t.Name()); strings.HasPrefix(name, "checkout_") {
		t.Skip("act would ask github.com for what is checked out")
	}
	w, problems := workflow.Parse(".github/workflows/ci.yml", find(a, "workflow.yml"))
	if workflow.Failed(problems) {
		t.Fatalf("parse: %v", problems)
	}
	base := t.TempDir()
	r := &actRun{base: base, repo: filepath.Join(base, "repo"), event: w.Events[0].Name}
	if r.event == "workflow_call" {
		t.Skip("act runs no workflow that only others call")
	}
	r.args = []string{act, r.event, "--json", "-C", r.repo, "--actor", "mona", "--env", "GITHUB_RUN_ID=7", "--env", "GITHUB_RUN_NUMBER=3",
		"-P", "ubuntu-latest=-self-hosted", "-e", filepath.Join(base, "event.json")}
	files := map[string]string{"event.json": `{"number": 1}`}
	r.options(t, string(a.Comment), files)
	for _, f := range a.Files {
		if f.Name == "workflow.yml" {
			files["repo/.github/workflows/ci.yml"] = string(f.Data)
		} else if f.Name != "want" {
			files[f.Name] = string(f.Data)
		}
	}
	local := map[string]bool{}
	for name, text := range files {
		at := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if p := strings.SplitN(name, "/", 4); p[0] == "actions" && !local[p[1]+"/"+p[2]] {
			local[p[1]+"/"+p[2]] = true
			r.args = append(r.args, "--local-repository", p[1]+"/"+p[2]+"="+filepath.Join(base, "actions", p[1], p[2]))
		}
	}
	r.git(t, "init", "-q", "-b", "main")
	r.git(t, "remote", "add", "origin", "https://github.com/octo/app")
	r.git(t, "add", "-A")
	r.git(t, "-c", "user.name=mona", "-c", "user.email=mona@localhost", "commit", "-q", "-m", "all")
	r.sha = strings.TrimSpace(r.git(t, "rev-parse", "HEAD"))
	return r
}

// options are those of TestScenarios.
func (r *actRun) options(t *testing.T, comment string, files map[string]string) {
	t.Helper()
	for line := range strings.Lines(comment) {
		key, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "secret":
			r.args = append(r.args, "-s", strings.ReplaceAll(rest, `\n`, "\n"))
		case "token":
			r.args = append(r.args, "-s", "GITHUB_TOKEN="+rest)
		case "var":
			r.args = append(r.args, "--var", rest)
		case "input":
			if r.event != "workflow_dispatch" {
				t.Skipf("the job does not run alone: %s", line)
			}
			r.args = append(r.args, "--input", rest)
		case "event":
			files["event.json"] = rest
		case "debug":
			r.args = append(r.args, "-s", "ACTIONS_STEP_DEBUG=true")
		case "cancel":
			r.cancelAt, _, _ = strings.Cut(rest, " because of ")
		case "need", "instance", "check-run":
			t.Skipf("the job does not run alone: %s", line)
		case "needs":
			if _, err := exec.LookPath(rest); err != nil {
				t.Skipf("%s is not installed", rest)
			}
		}
	}
}

func (r *actRun) git(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = r.repo
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v: %s", args[0], err, out)
	}
	return string(out)
}

// outcome runs act. Where it does not end by itself there is no conclusion.
func (r *actRun) outcome(t *testing.T) (o outcome) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), actPatient)
	defer stop()
	cmd := exec.CommandContext(ctx, r.args[0], r.args[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+r.base, "XDG_CACHE_HOME="+r.base+"/cache", "XDG_CONFIG_HOME="+r.base, "CI=true")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	in := bufio.NewScanner(out)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		all.WriteString(in.Text() + "\n")
		var l struct {
			Msg       string `json:"msg"`
			Printed   bool   `json:"raw_output"`
			JobResult string `json:"jobResult"`
		}
		if json.Unmarshal(in.Bytes(), &l) != nil {
			continue
		}
		if l.JobResult != "" {
			o.Conclusion = l.JobResult
		}
		if l.Printed {
			o.Lines = append(o.Lines, r.plain(l.Msg)...)
		}
		if l.Printed && r.cancelAt != "" && strings.Contains(l.Msg, r.cancelAt) {
			r.cancelAt = ""
			cmd.Process.Signal(os.Interrupt)
		}
	}
	t.Logf("act ended: %v\n%s", cmd.Wait(), all.String())
	return o
}

// plain is what a step has printed, in the words of the golden form.
func (r *actRun) plain(text string) []string {
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	text = colour.ReplaceAllString(text, "")
	if actItself.MatchString(text) {
		return nil
	}
	text = actFolder.ReplaceAllString(actScript.ReplaceAllString(text, "SCRIPT"), "$$BASE/work/app/app")
	text = strings.NewReplacer(r.base, "$BASE", r.sha, "0123456789abcdef0123456789abcdef01234567").Replace(text)
	return strings.Split(text, "\r")
}
