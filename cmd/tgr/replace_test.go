package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/llm"
)

// Every built-in step is one that the compiler takes, that asks for nothing, and that bash can read.
func TestNativeStepsCompile(t *testing.T) {
	for _, uses := range []string{"actions/setup-node@v4", "actions/setup-go@v5", "actions/setup-python@v5", "astral-sh/setup-uv@v5", "actions/setup-java@v4",
		"actions/setup-dotnet@v4", "dtolnay/rust-toolchain@stable", "actions-rs/toolchain@v1", "actions-rust-lang/setup-rust-toolchain@v1",
		"pnpm/action-setup@v4", "oven-sh/setup-bun@v2", "hashicorp/setup-terraform@v3"} {
		r, ok := llm.Native(uses, map[string]string{"version": "1\n2\t\x7f", "go-version": "${{ matrix.go }}"})
		if !ok || r.Steps == "" {
			t.Errorf("%s has no replacement", uses)
			continue
		}
		_, script, _ := strings.Cut(r.Steps, "  run: |\n")
		script = strings.ReplaceAll(script, "\n    ", "\n")[4:]
		if err := acceptStep(r.Steps, script); err != nil {
			t.Errorf("%s: %v\n%s", uses, err, r.Steps)
		}
		cmd := exec.Command("bash", "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", uses, err, out)
		}
	}
}

// A script may be anything but YAML: what the compiler reads is one step that runs it.
func TestAcceptStep(t *testing.T) {
	for script, want := range map[string]string{
		"make":                       "",
		"if x; then\n  y\n\n\tz\nfi": "",
		"echo 'a: b' # c\ncat <<E\n- run: evil\nE": "",
		"echo ${{ github.sha }}":                   "holds an expression",
		"echo ${{ secrets.X }}":                    "secrets",
		"echo \"$X\"\n\u2028- run: evil":           "not what the compiler reads",
	} {
		err := acceptStep(llm.StepYAML("x", map[string]string{"INPUT_A": "1: {"}, script), script)
		if (err == nil) != (want == "") || err != nil && want != "not what the compiler reads" && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", script, err, want)
		}
	}
	if err := acceptStep("- run: one\n- run: two\n", "one"); err == nil || !strings.Contains(err.Error(), "not one step") {
		t.Errorf("of two steps: %v", err)
	}
}

// Only what the runner says of an action that it could not get is taken for that.
func TestMissingAction(t *testing.T) {
	for _, tt := range []struct {
		r    dispatch.JobResult
		want string
	}{
		{dispatch.JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameWorkflow, Reason: "ci.yml:3:9: Unable to resolve action 'a/b@v1': there is none"}, "a/b@v1"},
		{dispatch.JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameOurs, Reason: "Unable to resolve action 'a/b@v1': the server does not answer"}, "a/b@v1"},
		{dispatch.JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameWorkflow, Reason: "ci.yml:3:9: uses: 'a/b/c@v1' has no action.yml or action.yaml"}, "a/b/c@v1"},
		{dispatch.JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameUser, Reason: "Unable to resolve action 'a/b@v1'"}, ""},
		{dispatch.JobResult{Conclusion: tgr.Success, Blame: tgr.BlameWorkflow, Reason: "Unable to resolve action 'a/b@v1'"}, ""},
		{dispatch.JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameWorkflow, Reason: "Unable to resolve action 'a/<b>@v1'"}, ""},
		{dispatch.JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameWorkflow, Reason: "ci.yml:3:9: no such key"}, ""},
	} {
		if got := missingAction(tt.r); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.r, got, tt.want)
		}
	}
}

// A job that could not have its action says what could stand in its place, on the page and to tgr explain; nobody runs it.
func TestServeMissingAction(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/missing", map[string]string{workflowDir + "/ci.yml": `on: push
jobs:
  known:
    runs-on: linux
    steps: [{uses: actions/setup-go@v999, with: {go-version: "1.22", cache: true}}]
  unknown:
    runs-on: linux
    steps: [{uses: nobody/at-all@v1}]
`})
	run := s.completed(s.push(repo, nil))[0]
	var notes *tgr.Notes
	s.await("both explanations", func() bool {
		d, err := s.client.Run(t.Context(), run.ID, 0)
		notes = d.Notes
		return err == nil && notes != nil && len(notes.Explanations) == 2 && notes.Explanations[0].Instead != nil && notes.Explanations[1].Instead != nil
	})
	page, out := s.get("/runs/"+run.ID.String()), s.show("explain", run.ID.String())
	for _, want := range []string{"actions/setup-go@v999", "In its place could stand", `VERSION: "1.22"`, "The input cache is not looked at", "nobody/at-all@v1", "Nothing is built in", "tgr import --action nobody/at-all@v1"} {
		if !strings.Contains(out, want) {
			t.Errorf("tgr explain does not say %q:\n%s", want, out)
		}
	}
	for _, want := range []string{"was not to be had. These steps could stand in its place", "VERSION: &#34;1.22&#34;", "Nothing is built in to stand in its place"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// proposal is what the model answers to the request for a script in the place of nobody/at-all.
func proposal(t *testing.T, prompt, script string) string {
	if !strings.Contains(prompt, "Action: nobody/at-all@v1") || !strings.Contains(prompt, "Input who is in $INPUT_WHO: you") {
		t.Errorf("the prompt: %s", prompt)
	}
	b, err := json.Marshal(map[string]any{"script": script, "notes": []string{"see https://evil.example"}})
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// tgr import --action prints what is built in without asking anybody, and a model's script once it has run.
func TestImportAction(t *testing.T) {
	o := newScriptedOllama(t)
	propose := func(script string) {
		o.say(func(schema, prompt string) string { return proposal(t, prompt, script) })
	}
	propose("test -z \"$CANARY_SECRET\" && test \"$INPUT_WHO\" = you && echo hello from a machine")
	run := func(args ...string) (string, string, int) {
		cmd := exec.Command("tgr", append([]string{"import", "-C", t.TempDir()}, args...)...)
		cmd.Env = append(os.Environ(), "TGR_CONFIG=/dev/null", "USE_LLM_PARSER=true", "OLLAMA_BASE_URL="+o.URL, "OLLAMA_MODEL=scripted", "TGR_DATA_DIR="+t.TempDir(), "CANARY_SECRET=x")
		var out, notes strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &notes
		code := exitCode(cmd.Run())
		return out.String(), notes.String(), code
	}
	for _, tt := range []struct {
		args       []string
		code       int
		out, notes string
	}{
		{[]string{"--action", "actions/setup-go@v5", "--with", "go-version=1.22"}, 0, `VERSION: "1.22"`, "built in, and accepted by the compiler"},
		{[]string{"--action", "actions/cache@v4"}, exitUsage, "", "actions-mirror"},
		{[]string{"--action", "actions/setup-go@v5", "--with", "go-version=${{ secrets.X }}"}, exitUsage, "", "it uses secrets"},
		{[]string{"--action", "actions/setup-go@v5", "--with", "nonsense"}, exitUsage, "", "is not input=value"},
		{[]string{"--action", "nonsense"}, exitUsage, "", "owner/name@ref"},
		{[]string{"--with", "a=b", "Jenkinsfile"}, exitUsage, "", "--with is for an --action"},
		{[]string{"--action", "a/b@c", "Jenkinsfile"}, exitUsage, "", "one of them"},
		{nil, exitUsage, "", "one of them"},
	} {
		if out, notes, code := run(tt.args...); code != tt.code || !strings.Contains(out, tt.out) || (tt.out == "") != (out == "") || !strings.Contains(notes, tt.notes) {
			t.Errorf("%q: exit status %d\n%s\n%s", tt.args, code, out, notes)
		}
	}
	if n := len(o.asked()); n != 0 {
		t.Errorf("the model was asked %d times for what is built in", n)
	}
	if testing.Short() {
		t.Skip("-short: no virtual machines")
	}
	out, notes, code := run("--action", "nobody/at-all@v1", "--with", "who=you")
	if code != 0 || !strings.Contains(out, "hello from a machine") || !strings.Contains(notes, "it has run") || strings.Contains(notes, "evil.example") {
		t.Errorf("exit status %d\n%s\n%s", code, out, notes)
	}
	propose("exit 7")
	if out, notes, code := run("--action", "nobody/at-all@v1", "--with", "who=you"); code != exitFailed || out != "" || !strings.Contains(notes, "not to be used as it is") {
		t.Errorf("of a script that fails: exit status %d\n%s\n%s", code, out, notes)
	}
	propose("echo ${{ github.sha }}")
	if out, notes, code := run("--action", "nobody/at-all@v1", "--with", "who=you"); code != exitUsage || out != "" || !strings.Contains(notes, "holds an expression") {
		t.Errorf("of a script with an expression: exit status %d\n%s\n%s", code, out, notes)
	}
}
