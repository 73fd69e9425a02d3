package main

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/web"
)

// toolkit is GitHub's packages that the action in testdata/toolkit is made of, and what bundles it.
func toolkit() []string {
	return []string{"@actions/cache@6.3.0", "@actions/artifact@6.2.1", "@actions/core@3.0.1", "@actions/github@9.1.1", "@actions/exec@3.0.0",
		"@actions/tool-cache@4.0.0", "@actions/glob@0.7.0", "esbuild@0.28.2"}
}

// toolkitDir returns a folder whose node_modules has the toolkit: $TGR_NPM_DIR, or with TGR_NETWORK=1 it is installed into
// the user's cache.
func toolkitDir(t *testing.T) string {
	t.Helper()
	has := func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "node_modules/@actions/tool-cache/package.json"))
		return err == nil && isExecutable(filepath.Join(dir, "node_modules/.bin/esbuild"))
	}
	dir := os.Getenv("TGR_NPM_DIR")
	if dir == "" || !has(dir) {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "tgr", "test-npm-toolkit-1")
	}
	if !has(dir) {
		if os.Getenv("TGR_NETWORK") != "1" {
			t.Skip("SKIPPED, GITHUB'S TOOLKIT IS NOT TESTED: TGR_NETWORK=1 installs it with npm, or TGR_NPM_DIR names a folder that has it")
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("npm", append([]string{"install", "--no-audit", "--no-fund", "--prefix", dir}, toolkit()...)...).CombinedOutput(); err != nil {
			t.Fatalf("npm: %v\n%s", err, out)
		}
	}
	return dir
}

// bundled bundles a script with its packages into one file, as actions are published.
func bundled(t *testing.T, source, banner string) string {
	t.Helper()
	dir := toolkitDir(t)
	source, err := filepath.Abs(source)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "index.mjs")
	cmd := exec.Command(filepath.Join(dir, "node_modules/.bin/esbuild"), source, "--bundle", "--platform=node", "--target=node20", "--format=esm",
		"--banner:js=import {createRequire as tgrRequire} from 'node:module'; const require = tgrRequire(import.meta.url);"+banner,
		"--log-level=error", "--outfile="+out)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"))
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("esbuild: %v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// wireClient is the client of the conformance data as an action: its input says what it does. "" where it is absent.
func wireClient(t *testing.T) string {
	t.Helper()
	const path = "../../../shared/suites/wire-traces/client.mjs"
	if _, err := os.Stat(path); err != nil {
		t.Log("THE CLIENT OF THE CONFORMANCE DATA IS NOT RUN: ", err)
		return ""
	}
	return bundled(t, path, "process.argv[2] = process.env.INPUT_WHAT;")
}

// wireJob is a job with that client.
func wireJob(sha string) string {
	return fmt.Sprintf(`  wire:
    runs-on: ubuntu-latest
    steps:
      - {uses: "acme/wire@%[1]s", with: {what: cache}}
      - {uses: "acme/wire@%[1]s", with: {what: art}}
`, sha)
}

// wireSays are lines of the client when all is well.
func wireSays() []string {
	return []string{"restore-miss undefined", "save-dup -1", "restore-prefix k1-abc true", "restore-exact k1-abc true", "lookup k1-abc",
		`"digestMismatch":false`, "raw {", `delete {"id":`, "oidc "}
}

// toolkitWorkflow uses the action, pinned by its commit, in jobs that hand one another caches and artifacts.
func toolkitWorkflow(sha string, mib int) string {
	return fmt.Sprintf(`name: Toolkit
on: push
permissions: {id-token: write, contents: read}
jobs:
  first:
    runs-on: ubuntu-latest
    outputs: {cache: "${{ steps.save.outputs.hash }}", artifact: "${{ steps.up.outputs.hash }}"}
    steps:
      - {id: save, uses: acme/toolkit@%[1]s, with: {do: save, mib: %[2]d}}
      - {id: up, uses: acme/toolkit@%[1]s, with: {do: upload, mib: %[2]d}}
      - uses: acme/toolkit@%[1]s
        with: {do: tools identity}
      - run: |
          if env | grep -E '^ACTIONS_(RUNTIME|RESULTS|CACHE)_'; then echo "a run step sees the services"; exit 1; fi
          test "$FROM_ACTION" = "$(printf 'multi\nline')"
          case "$PATH" in "$GITHUB_WORKSPACE/tree:"*) ;; *) exit 1;; esac
  second:
    needs: first
    runs-on: ubuntu-latest
    steps:
      - {uses: "acme/toolkit@%[1]s", with: {do: restore, hash: "${{ needs.first.outputs.cache }}"}}
      - {uses: "acme/toolkit@%[1]s", with: {do: download, hash: "${{ needs.first.outputs.artifact }}"}}
  plain:
    runs-on: ubuntu-latest
    permissions: {contents: read}
    steps:
      - run: if env | grep ^ACTIONS_; then exit 1; fi
`, sha, mib)
}

// testToolkit runs GitHub's toolkit, unmodified, from a git server through a webhook to the end.
func testToolkit(t *testing.T, mib int, env ...string) {
	bundle := bundled(t, "testdata/toolkit/main.mjs", "")
	s := openSite(t, env...)
	s.patience = 20 * time.Minute // emulated machines on a busy host take as long as they take
	if end, ok := t.Deadline(); ok {
		s.patience = min(s.patience, time.Until(end)-time.Minute)
	}
	// The toolkit takes a server for GitHub's own by its name: so the clone's host is one below localhost.
	s.stop()
	s.env = append(s.env, "GITHUB_SERVER_URL="+strings.Replace(s.hub.URL, "127.0.0.1", "github.localhost", 1))
	s.start()
	action := s.repo("acme/toolkit", map[string]string{"index.mjs": bundle,
		"action.yml": "name: toolkit\ninputs: {do: {required: true}, mib: {default: '1'}, hash: {}, run-id: {}, github-token: {}}\noutputs: {hash: {}, kid: {}}\nruns: {using: node20, main: index.mjs}\n"})
	workflow := toolkitWorkflow(action.SHA("main"), mib)
	if wire := wireClient(t); wire != "" {
		workflow += wireJob(s.repo("acme/wire", map[string]string{"index.mjs": wire,
			"action.yml": "name: wire\ninputs: {what: {required: true}}\nruns: {using: node20, main: index.mjs}\n"}).SHA("main"))
	}
	repo := s.repo("acme/app", map[string]string{workflowDir + "/ci.yml": workflow})
	d := s.completed(s.push(repo, nil))[0]
	for _, j := range d.Jobs {
		log := s.get(fmt.Sprintf("/api/jobs/%d/log", j.ID))
		if j.Conclusion != tgr.Success {
			t.Errorf("job %s: %s, %s\n%s", j.Key, j.Conclusion, j.Reason, log)
		}
		if j.Key == "wire" {
			for _, want := range wireSays() {
				if !strings.Contains(log, want) {
					t.Errorf("the client of the conformance data did not say %q:\n%s", want, log)
				}
			}
		}
		for line := range strings.Lines(log) {
			if strings.Contains(line, "MiB in") {
				t.Logf("%s: %s", j.Key, strings.TrimSpace(line))
			}
		}
		if strings.Contains(log, "a-secret-of-the-action") || j.Key == "first" && !strings.Contains(log, "masked: ***") {
			t.Errorf("job %s does not mask what its action told it to", j.Key)
		}
	}
	if t.Failed() {
		return
	}
	s.otherRun(repo, action.SHA("main"), d)
	if t.Failed() {
		return
	}
	s.checkArtifacts(d.ID)
	if page := s.get(fmt.Sprintf("/runs/%d", d.ID)); !strings.Contains(page, `/api/artifacts/`) || !strings.Contains(page, "small.txt") {
		t.Errorf("the page of the run does not list its artifacts:\n%s", page)
	}
	if keys := s.get("/oidc/.well-known/jwks"); !strings.Contains(keys, `"alg":"RS256"`) {
		t.Errorf("the issuer's keys: %s", keys)
	}
}

// otherRun has a run of its own download what the first one has left, as actions/download-artifact does with run-id.
func (s *site) otherRun(repo *githubtest.Repo, action string, first web.RunDetail) {
	s.t.Helper()
	hash := job(first, "first").Outputs["artifact"]
	d := s.completed(s.push(repo, map[string]string{workflowDir + "/ci.yml": fmt.Sprintf(`on: push
permissions: {actions: read}
jobs:
  other:
    runs-on: ubuntu-latest
    steps:
      - {uses: "acme/toolkit@%s", with: {do: other, run-id: %d, github-token: "${{ github.token }}", hash: %s}}
`, action, first.ID, hash)}))[0]
	for _, j := range d.Jobs {
		if j.Conclusion != tgr.Success {
			s.t.Errorf("the job of another run: %s, %s\n%s", j.Conclusion, j.Reason, s.get(fmt.Sprintf("/api/jobs/%d/log", j.ID)))
		}
	}
}

// checkArtifacts downloads an artifact over the API and with the command line.
func (s *site) checkArtifacts(run tgr.RunID) {
	t := s.t
	t.Helper()
	verb := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("tgr", append(args, "--data-dir", filepath.Join(s.data, "data"))...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("tgr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	list := verb("artifact", "list", "--run", run.String())
	if want := 5 + strings.Count(list, " a.txt "); strings.Count(list, "acme/app") != want || strings.Contains(list, "par-4") {
		t.Errorf("artifacts:\n%s", list)
	}
	var id string
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 3 && f[3] == "par-1" {
			id = f[0]
		}
	}
	dir := t.TempDir()
	if path := strings.TrimSpace(verb("artifact", "download", id, "--dir", dir)); path != filepath.Join(dir, "par-1.zip") {
		t.Errorf("downloaded to %s", path)
	}
	saved, err := os.ReadFile(filepath.Join(dir, "par-1.zip"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(s.url + "/api/artifacts/" + id)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	fetched, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(fetched, saved) {
		t.Errorf("the API gives %d bytes (%s, %v), and the command line %d", len(fetched), resp.Status, err, len(saved))
	}
	if z, err := zip.NewReader(bytes.NewReader(saved), int64(len(saved))); err != nil || len(z.File) != 1 || z.File[0].Name != "small.txt" {
		t.Errorf("par-1.zip: %v", err)
	}
	if caches := verb("cache", "list", "--repo", "acme/app"); !strings.Contains(caches, "deps-1") {
		t.Errorf("caches:\n%s", caches)
	}
	if got := verb("cache", "rm", "--all"); !strings.HasPrefix(got, "removed ") {
		t.Errorf("cache rm --all: %q", got)
	}
}

// TestToolkit runs it in processes, with a cache that takes several blocks.
func TestToolkit(t *testing.T) { testToolkit(t, 130) }

// TestToolkitOverAPI runs it on machines of the VM management API, from which everything comes over that.
func TestToolkitOverAPI(t *testing.T) {
	toolkitDir(t)
	d := startDaemon(t)
	testToolkit(t, 4, "FIRECRACKER_API_URL="+d.url, "FIRECRACKER_AUTH_TOKEN="+d.token)
}

// TestToolkitVM runs it in virtual machines, where all goes through the agent's port. Emulated machines are slow.
func TestToolkitVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines")
	}
	im, err := (&image.Store{}).Open(t.Context(), image.DefaultName)
	if err != nil {
		t.Skip("SKIPPED, NOT TESTED IN MACHINES: ", err)
	}
	im.Close()
	testToolkit(t, 4, "TGR_ISOLATION=qemu", "TGR_VM_POOL=0", "MAX_CONCURRENT_WORKFLOWS=2")
}
