package results

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// npmPackages are the clients that the tests run, in the versions of ../shared/suites/wire-traces.
func npmPackages() []string {
	return []string{"@actions/cache@6.3.0", "@actions/artifact@6.2.1", "@actions/core@3.0.1"}
}

// npmDir returns a folder whose node_modules has GitHub's clients: $TGR_NPM_DIR, or with TGR_NETWORK=1 they are
// installed into the user's cache.
func npmDir(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("SKIPPED: there is no node: ", err)
	}
	has := func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "node_modules/@actions/artifact/package.json"))
		return err == nil
	}
	if dir := os.Getenv("TGR_NPM_DIR"); dir != "" && has(dir) {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "tgr", "test-npm-results-1")
	if has(dir) {
		return dir
	}
	if os.Getenv("TGR_NETWORK") != "1" {
		t.Skip("SKIPPED: GitHub's npm packages are neither in $TGR_NPM_DIR nor in ", dir, "; TGR_NETWORK=1 installs them")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("npm", append([]string{"install", "--no-audit", "--no-fund", "--prefix", dir}, npmPackages()...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm: %v\n%s", err, out)
	}
	return dir
}

// wireClient runs client.mjs of the conformance data, and returns what it prints. Node looks for packages from where the
// script is, so that it runs from a folder beside them.
func wireClient(t testing.TB, c *client, what string, env ...string) string {
	t.Helper()
	script, err := os.ReadFile("../../shared/suites/wire-traces/client.mjs")
	if err != nil {
		t.Skip("SKIPPED: the conformance data is not here: ", err)
	}
	return nodeScript(t, c, script, []string{what}, env...)
}

func nodeScript(t testing.TB, c *client, script []byte, args []string, env ...string) string {
	t.Helper()
	dir, work := t.TempDir(), t.TempDir()
	if err := os.Symlink(filepath.Join(npmDir(t), "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "script.mjs")
	if err := os.WriteFile(path, script, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"w", "temp", "home"} {
		if err := os.Mkdir(filepath.Join(work, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", append([]string{path}, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + work + "/home", "GITHUB_WORKSPACE=" + work + "/w", "RUNNER_TEMP=" + work + "/temp",
		"GITHUB_SERVER_URL=https://github.com", "GITHUB_ACTIONS=true", "GITHUB_REF=refs/heads/main"}, env...)
	for k, v := range c.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("node: %v\n%s", err, &out)
	}
	t.Logf("%s", &out)
	return out.String()
}

// TestWireCache runs GitHub's cache client against both versions of the service.
func TestWireCache(t *testing.T) {
	for i, service := range []string{"v1", "v2"} {
		t.Run(service, func(t *testing.T) {
			c := began(t, opened(t, Config{}), jobOn(1, "main"))
			if i == 0 {
				delete(c.env, "ACTIONS_CACHE_SERVICE_V2")
			}
			out := wireClient(t, c, "cache")
			for _, want := range []string{
				"restore-miss undefined", "save-dup -1", "restore-prefix k1-abc true", "restore-exact k1-abc true", "lookup k1-abc",
			} {
				if !strings.Contains(out, want+"\n") {
					t.Errorf("the client did not print %q:\n%s", want, out)
				}
			}
			if !strings.Contains(out, "save ") || strings.Contains(out, "\nsave -1") || strings.Contains(out, "::warning::") || strings.Contains(out, "::error::") {
				t.Errorf("the client did not save, or complained:\n%s", out)
			}
		})
	}
}

// TestWireArtifact runs GitHub's artifact client, and asks for an identity token.
func TestWireArtifact(t *testing.T) {
	c := began(t, opened(t, Config{Issuer: "https://tgr.example"}), jobOn(1, "main"))
	out := wireClient(t, c, "art")
	for _, want := range []string{`"name":"my-art"`, `"digestMismatch":false`, `[ 'a.txt', 'big.bin' ]`, "raw {", "delete {", "\noidc ey"} {
		if !strings.Contains(out, want) {
			t.Errorf("the client did not print %q:\n%s", want, out)
		}
	}
	list, err := c.x.s.Artifacts(t.Context(), c.x.job.Run.ID)
	if err != nil || len(list) != 1 || list[0].Name != "a.txt" || list[0].Type != "text/plain" {
		t.Errorf("artifacts in the end: %+v, %v, want a.txt alone", list, err)
	}
	if age := time.Until(list[0].Expires); age < 89*24*time.Hour {
		t.Errorf("a.txt expires in %v, want the retention of 90 days", age)
	}
}
