package llm

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// projects is the internet as far as the replacements know it: each project's files under its own names.
type projects map[string][]byte

// ServeHTTP implements http.Handler.
func (p projects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, ok := p[r.Host+r.URL.RequestURI()]
	if !ok {
		http.Error(w, "there is no "+r.Host+r.URL.RequestURI(), http.StatusNotFound)
		return
	}
	w.Write(b)
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// tarball has one executable, below one folder.
func tarball(t *testing.T, name, script string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(script)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte(script))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func piped(t *testing.T, in []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// world is what the projects serve, of versions that never were.
func world(t *testing.T) projects {
	arch := map[string][2]string{"amd64": {"x64", "amd64"}, "arm64": {"arm64", "arm64"}}[runtime.GOARCH]
	node := piped(t, tarball(t, "node-v20.9.1/bin/node", "#!/bin/sh\necho node 20.9.1\n"), "xz", "-c")
	nodeFile := "node-v20.9.1-linux-" + arch[0] + ".tar.xz"
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	z.Write(tarball(t, "go/bin/go", "#!/bin/sh\necho go 1.22.5\n"))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	zw := zip.NewWriter(&zipped)
	h := &zip.FileHeader{Name: "terraform", Method: zip.Deflate}
	h.SetMode(0o755)
	f, err := zw.CreateHeader(h)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("#!/bin/sh\necho terraform 1.9.8\n"))
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	installer := func(dir, tool string) []byte {
		return []byte(fmt.Sprintf("mkdir -p %s && printf '#!/bin/sh\\necho %s \"$@\"\\n' >%s/%s && chmod +x %s/%s\n", dir, tool, dir, tool, dir, tool))
	}
	goFile := func(v string) string {
		return fmt.Sprintf(`{"version":%q,"stable":true,"files":[{"filename":"%s.src.tar.gz","os":"","arch":"","kind":"source","sha256":"0"},{"filename":"%s.linux-%s.tar.gz","os":"linux","arch":%q,"kind":"archive","sha256":%q}]}`,
			v, v, v, arch[1], arch[1], sum(gz.Bytes()))
	}
	tf := "terraform_1.9.8_linux_" + arch[1] + ".zip"
	return projects{
		"nodejs.org/dist/index.json":                                        []byte(`[{"version":"v21.0.0","lts":false},{"version":"v20.9.1","lts":"Iron"},{"version":"v20.9.0","lts":"Iron"},{"version":"v2.0.0","lts":false}]`),
		"nodejs.org/dist/v20.9.1/" + nodeFile:                               node,
		"nodejs.org/dist/v20.9.1/SHASUMS256.txt":                            []byte(sum(node) + "  " + nodeFile + "\n" + sum(nil) + "  other.tar.xz\n"),
		"go.dev/dl/?mode=json&include=all":                                  []byte("[" + `{"version":"go1.23rc1","stable":false,"files":[]},` + goFile("go1.22.5") + "," + goFile("go1.22.4") + "," + goFile("go1.2") + "]"),
		"go.dev/dl/go1.22.5.linux-" + arch[1] + ".tar.gz":                   gz.Bytes(),
		"go.dev/dl/go1.22.4.linux-" + arch[1] + ".tar.gz":                   []byte("not what the hash is of"),
		"releases.hashicorp.com/terraform/1.9.8/" + tf:                      zipped.Bytes(),
		"releases.hashicorp.com/terraform/1.9.8/terraform_1.9.8_SHA256SUMS": []byte(sum(zipped.Bytes()) + "  " + tf + "\n"),
		"sh.rustup.rs/":                installer(`"$HOME/.cargo/bin"`, "rustup"),
		"astral.sh/uv/install.sh":      installer(`"$UV_INSTALL_DIR"`, "uv"),
		"dot.net/v1/dotnet-install.sh": []byte("test \"$2\" = 8.0 && mkdir -p \"$4\" && printf '#!/bin/sh\\necho dotnet\\n' >\"$4/dotnet\" && chmod +x \"$4/dotnet\"\n"),
	}
}

// The built-in steps do what they say: against projects' files as they are laid out, with the hash of each looked at.
func TestNativeRuns(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "jq", "xz", "tar", "unzip", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the built-in steps are not run: this machine has no %s", tool)
		}
	}
	srv := httptest.NewTLSServer(world(t))
	t.Cleanup(srv.Close)
	for _, tt := range []struct {
		uses string
		with map[string]string
		call string // with the new PATH
		want string // of its output; or of what the step complains about
		fail bool
	}{
		{"actions/setup-node@v4", map[string]string{"node-version": "20"}, "node", "node 20.9.1", false},
		{"Actions/Setup-Node@v4", map[string]string{"node-version": "20.x"}, "node", "node 20.9.1", false},
		{"actions/setup-node@v4", nil, "node", "node 20.9.1", false},
		{"actions/setup-node@v4", map[string]string{"node-version": "v20.9.1"}, "node", "node 20.9.1", false},
		{"actions/setup-node@v4", map[string]string{"node-version-file": ".nvmrc"}, "node", "node 20.9.1", false},
		{"actions/setup-node@v4", map[string]string{"node-version": "2"}, "node", "404", true},
		{"actions/setup-node@v4", map[string]string{"node-version": "99"}, "", "Node.js has no version 99", true},
		{"actions/setup-node@v4", map[string]string{"node-version": `$(touch "$RUNNER_TEMP/pwned")`}, "", "Node.js has no version", true},
		{"actions/setup-go@v5", map[string]string{"go-version": "1.22"}, "go", "go 1.22.5", false},
		{"actions/setup-go@v5", map[string]string{"go-version": "stable"}, "go", "go 1.22.5", false},
		{"actions/setup-go@v5", map[string]string{"go-version-file": "go.mod"}, "go", "go 1.22.5", false},
		{"actions/setup-go@v5", map[string]string{"go-version": "1.22.4"}, "", "FAILED", true},
		{"actions/setup-go@v5", map[string]string{"go-version": "1.99"}, "", "Go has no version 1.99", true},
		{"hashicorp/setup-terraform@v3", map[string]string{"terraform_version": "1.9.8"}, "terraform", "terraform 1.9.8", false},
		{"hashicorp/setup-terraform@v3", map[string]string{"terraform_version": "0.0.1"}, "", "404", true},
		{"dtolnay/rust-toolchain@1.80", map[string]string{"components": "clippy, rustfmt"}, "rustup which", "rustup which", false},
		{"astral-sh/setup-uv@v5", nil, "uv --version", "uv --version", false},
		{"actions/setup-dotnet@v4", map[string]string{"dotnet-version": "8.0.x"}, "dotnet", "dotnet", false},
	} {
		t.Run(fmt.Sprint(tt.uses, tt.with), func(t *testing.T) {
			out, err := runNative(t, srv.Listener.Addr().String(), tt.uses, tt.with, tt.call)
			if (err != nil) != tt.fail || !strings.Contains(out, tt.want) {
				t.Errorf("%v, want %q\n%s", err, tt.want, out)
			}
		})
	}
}

// runNative runs a replacement as the runner would, with every host of the internet at addr, and then a command with what it put
// into the PATH.
func runNative(t *testing.T, addr, uses string, with map[string]string, call string) (string, error) {
	t.Helper()
	r, ok := Native(uses, with)
	if !ok || r.Steps == "" {
		t.Fatalf("there is no replacement of %s", uses)
	}
	dir := t.TempDir()
	put := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	put(".curlrc", "insecure\nconnect-to = \"::"+addr+"\"\n")
	put(".nvmrc", "v20\n")
	put("go.mod", "module x\n\ngo 1.22\n")
	path, env := put("path", ""), put("env", "")
	script := put("script", strings.ReplaceAll(scriptOf(r.Steps), "\n    ", "\n"))
	cmd := exec.Command("bash", "--noprofile", "--norc", "-eo", "pipefail", script)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "CURL_HOME=" + dir, "RUNNER_TEMP=" + dir, "GITHUB_PATH=" + path, "GITHUB_ENV=" + env}
	for _, m := range regexp.MustCompile(`(?m)^    ([A-Z_]+): "(.*)"$`).FindAllStringSubmatch(r.Steps, -1) {
		cmd.Env = append(cmd.Env, m[1]+"="+strings.ReplaceAll(m[2], `\"`, `"`))
	}
	out, err := cmd.CombinedOutput()
	if _, serr := os.Stat(filepath.Join(dir, "pwned")); serr == nil {
		t.Error("an input was executed")
	}
	if err != nil || call == "" {
		return string(out), err
	}
	added, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(call)
	for dir := range strings.Lines(string(added)) {
		if tool := filepath.Join(strings.TrimSpace(dir), words[0]); isFile(tool) {
			said, err := exec.Command(tool, words[1:]...).CombinedOutput()
			return string(out) + string(said), err
		}
	}
	return string(out), fmt.Errorf("%s is nowhere in what was added to the PATH: %s", words[0], added)
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// scriptOf cuts the script out of a step.
func scriptOf(steps string) string {
	_, script, _ := strings.Cut(steps, "  run: |")
	return script
}

// What is not known has no replacement; what has none that is honest says so; inputs that are not looked at are named.
func TestNative(t *testing.T) {
	for _, uses := range []string{"someone/setup-node@v4", "actions/setup-node", "actions/setup-node@v4\nx", "./local", "docker://alpine", "actions/setup-node@$(x)", ""} {
		if r, ok := Native(uses, nil); ok {
			t.Errorf("%q: %+v", uses, r)
		}
	}
	if r, ok := Native("actions/cache/restore@v4", map[string]string{"path": "x"}); !ok || r.Steps != "" || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "actions-mirror") {
		t.Errorf("actions/cache/restore: %+v", r)
	}
	r, ok := Native("actions/setup-node@v4", map[string]string{"node-version": "20", "cache": "npm", "\x1b[31mregistry": "x"})
	if all := strings.Join(r.Notes, "\n"); !ok || !strings.Contains(all, "input cache is not") || !strings.Contains(all, "input registry is not") || strings.Contains(all, "\x1b") {
		t.Errorf("notes: %q", r.Notes)
	}
	if r, _ := Native("dtolnay/rust-toolchain@nightly", nil); !strings.Contains(r.Steps, `TOOLCHAIN: "nightly"`) {
		t.Errorf("the ref is the toolchain:\n%s", r.Steps)
	}
	if r, _ := Native("dtolnay/rust-toolchain@master", map[string]string{"toolchain": "1.79"}); !strings.Contains(r.Steps, `TOOLCHAIN: "1.79"`) {
		t.Errorf("the input is the toolchain:\n%s", r.Steps)
	}
}

// Of whatever is given, a step holds the script and the environment, each value on the one line of its name.
func FuzzNative(f *testing.F) {
	f.Add("actions/setup-go@v5", "go-version", "1.22")
	f.Add("actions/setup-node@v4", "node-version", "20\n    run: evil")
	f.Add("dtolnay/rust-toolchain@stable", "components", "\"\\\u2028\x00\xff${{ secrets.X }}")
	f.Fuzz(func(t *testing.T, uses, input, value string) {
		r, ok := Native(uses, map[string]string{input: value})
		if !ok || r.Steps == "" {
			return
		}
		head, script, ok := strings.Cut(r.Steps, "  shell: bash\n  run: |\n")
		if !ok || strings.Contains(script, value) && len(value) > 40 {
			t.Fatalf("the script holds the input:\n%s", r.Steps)
		}
		line := regexp.MustCompile(`^(- name: "In place of [A-Za-z0-9_./@-]*"|  env:|    [A-Z_]+: "(?:[^"\\\x00-\x1f\x7f]|\\.)*")$`)
		for l := range strings.Lines(head) {
			if !line.MatchString(strings.TrimSuffix(l, "\n")) {
				t.Fatalf("the line %q in\n%s", l, r.Steps)
			}
		}
	})
}
