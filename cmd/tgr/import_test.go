package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const goodProposal = "name: CI\non: push\njobs:\n  test:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@v4\n      - run: make test\n"

// A proposal has to compile and may ask for nothing.
func TestAcceptProposal(t *testing.T) {
	if err := acceptProposal(goodProposal); err != nil {
		t.Fatal(err)
	}
	change := func(old, new string) string {
		if !strings.Contains(goodProposal, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(goodProposal, old, new, 1)
	}
	for want, text := range map[string]string{
		"steps":                      change("steps:", "stepz:"),
		"secrets":                    change("make test", "echo ${{ secrets.TOKEN }}"),
		"permissions":                change("jobs:", "permissions: write-all\njobs:"),
		"asks for permissions":       change("    steps:", "    permissions: {contents: write}\n    steps:"),
		"not started by a push":      change("on: push", "on: pull_request_target"),
		"it uses evil/action@v1":     change("actions/checkout@v4", "evil/action@v1"),
		"runs-on":                    change("ubuntu-latest", "self-hosted"),
		"time":                       change("    steps:", "    timeout-minutes: 6000\n    steps:"),
		"deploys":                    change("    steps:", "    environment: production\n    steps:"),
		"containers":                 change("    steps:", "    container: evil/image\n    steps:"),
		"calls another workflow":     "on: push\njobs:\n  x:\n    uses: evil/repo/.github/workflows/x.yml@main\n",
		"it uses secrets":            change("make test", "echo ${{ github.token }}"),
		"job second: it uses docker": goodProposal + "  second:\n    runs-on: ubuntu-latest\n    steps: [{uses: \"docker://alpine\"}]\n",
	} {
		if err := acceptProposal(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// tgr import proposes what was accepted, gives the model a second chance, and writes nothing.
func TestImport(t *testing.T) {
	o := newScriptedOllama(t)
	dir := t.TempDir()
	file := filepath.Join(dir, ".gitlab-ci.yml")
	if err := os.WriteFile(file, []byte("test:\n  script: make test\n  variables: {TOKEN: glpat-canary-0123456789abcdef}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	say := func(workflows ...string) {
		n := 0
		o.say(func(string, string) string {
			data, _ := json.Marshal(map[string]any{"workflow": workflows[min(n, len(workflows)-1)], "notes": []string{"see https://evil.example @me"}})
			n++
			return string(data)
		})
	}
	run := func(name string, args ...string) (string, string, int) {
		cmd := exec.Command("tgr", append([]string{"import", name}, args...)...)
		cmd.Env = append(os.Environ(), "TGR_CONFIG=/dev/null", "USE_LLM_PARSER=true", "OLLAMA_BASE_URL="+o.URL, "OLLAMA_MODEL=scripted", "TGR_DATA_DIR="+t.TempDir())
		var out, notes strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &notes
		code := exitCode(cmd.Run())
		return out.String(), notes.String(), code
	}
	say(strings.Replace(goodProposal, "steps:", "stepz:", 1), goodProposal)
	out, notes, code := run(file)
	if code != 0 || out != goodProposal || strings.Contains(notes, "evil.example") || strings.Contains(notes, "@me") || !strings.Contains(notes, "proposed by ollama/scripted") {
		t.Errorf("exit status %d\n%s\n%s", code, out, notes)
	}
	say(strings.Replace(goodProposal, "make test", "echo ${{ secrets.X }}", 1))
	if out, notes, code := run(file); code != exitUsage || out != "" || !strings.Contains(notes, "it uses secrets") {
		t.Errorf("exit status %d\n%s\n%s", code, out, notes)
	}
	if _, _, code := run(filepath.Join(dir, "travis.yml")); code != exitUsage {
		t.Errorf("an unknown file: exit status %d", code)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: something was written", entries, err)
	}
	for _, p := range o.asked() {
		if strings.Contains(p, "glpat-canary") {
			t.Error("a prompt holds the token")
		}
	}
}

// A dry run is in a machine, without network and secrets, on a copy of the tree.
func TestImportDryRun(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no virtual machines")
	}
	o := newScriptedOllama(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"Jenkinsfile": "pipeline { steps { sh './test.sh' } }", "test.sh": "test -z \"$CANARY_SECRET\" && test \"$(id -un)\" = runner && echo ran in a machine\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for command, want := range map[string]int{"bash test.sh": 0, "exit 3": exitFailed} {
		data, err := json.Marshal(map[string]any{"workflow": strings.Replace(goodProposal, "make test", command, 1), "notes": []string{}})
		if err != nil {
			t.Fatal(err)
		}
		o.say(func(string, string) string { return string(data) })
		cmd := exec.Command("tgr", "import", filepath.Join(dir, "Jenkinsfile"), "--dry-run", "-C", dir)
		cmd.Env = append(os.Environ(), "TGR_CONFIG=/dev/null", "USE_LLM_PARSER=true", "OLLAMA_BASE_URL="+o.URL, "OLLAMA_MODEL=scripted", "TGR_DATA_DIR="+t.TempDir(),
			"CANARY_SECRET=x", "TGR_ISOLATION=process")
		out, err := cmd.CombinedOutput()
		if got := exitCode(err); got != want || want == 0 && !strings.Contains(string(out), "ran in a machine") {
			t.Errorf("%s: exit status %d, want %d\n%s", command, got, want, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ".github")); err == nil {
		t.Error("the dry run wrote into the working tree")
	}
}
