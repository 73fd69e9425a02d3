package github

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

// checkout makes a checkout, unpacks it as a machine would, and returns the directory.
func checkout(t testing.TB, src *Source, spec CheckoutSpec) (dir string, co *Checkout) {
	t.Helper()
	co, err := src.Checkout(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer co.Tar.Close()
	dir = t.TempDir()
	unpack(t, co.Tar, dir, 1001)
	return dir, co
}

func unpack(t testing.TB, r io.Reader, dir string, uid int) {
	t.Helper()
	seen := map[string]bool{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if !filepath.IsLocal(h.Name) || seen[h.Name] || h.Uid != uid || h.Gid != uid {
			t.Errorf("tar entry %q: not local, twice, or of %d:%d", h.Name, h.Uid, h.Gid)
		}
		seen[h.Name] = true
		name := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(name, os.FileMode(h.Mode))
		case tar.TypeSymlink:
			at := unix.NsecToTimespec(h.ModTime.UnixNano())
			err = errors.Join(os.Symlink(h.Linkname, name), unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
		case tar.TypeReg:
			var data []byte
			if data, err = io.ReadAll(tr); err == nil {
				err = errors.Join(os.WriteFile(name, data, os.FileMode(h.Mode)), os.Chtimes(name, h.ModTime, h.ModTime))
			}
		default:
			t.Errorf("tar entry %q has type %c", h.Name, h.Typeflag)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// in calls git in an unpacked checkout, as a job's step would.
func in(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "safe.directory=*", "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func content(t testing.TB, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCheckoutOfBranch(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	commit(t, r, "main", map[string]string{"README.md": "one"})
	head, err := r.CommitEntries("main", "all kinds",
		githubtest.Entry{Path: "run.sh", Data: "#!/bin/sh\n", Mode: "100755"},
		githubtest.Entry{Path: "link", Data: "run.sh", Mode: "120000"},
		githubtest.Entry{Path: "escape", Data: "../../../etc/passwd", Mode: "120000"},
		githubtest.Entry{Path: "dir/ü \"x\".txt", Data: "two"})
	if err != nil {
		t.Fatal(err)
	}
	spec := CheckoutSpec{Repo: repoOf(r), SHA: head, Ref: "refs/heads/main", Depth: 1}
	for _, round := range []string{"first", "repeated"} {
		dir, co := checkout(t, src, spec)
		if co.SHA != head || co.Ref != "refs/heads/main" {
			t.Errorf("%s: SHA %s, ref %s", round, co.SHA, co.Ref)
		}
		for args, want := range map[string]string{
			"status --porcelain":                    "",
			"diff-files --name-only":                "", // the index fits the files without a refresh
			"rev-parse HEAD":                        head,
			"symbolic-ref HEAD":                     "refs/heads/main",
			"rev-parse refs/remotes/origin/main":    head,
			"rev-parse --abbrev-ref main@{u}":       "origin/main",
			"rev-list --count HEAD":                 "1",
			"rev-parse --is-shallow-repository":     "true",
			"remote get-url origin":                 srv.URL + "/ada/engine",
			"log -1 --format=%s refs/heads/main --": "all kinds",
		} {
			if got := in(t, dir, strings.Fields(args)...); got != want {
				t.Errorf("%s: git %s = %q, want %q", round, args, got, want)
			}
		}
		if fi, err := os.Stat(filepath.Join(dir, "run.sh")); err != nil || fi.Mode().Perm() != 0o755 {
			t.Errorf("run.sh: %v, %v", fi.Mode(), err)
		}
		for link, want := range map[string]string{"link": "run.sh", "escape": "../../../etc/passwd"} {
			if got, err := os.Readlink(filepath.Join(dir, link)); err != nil || got != want {
				t.Errorf("%s -> %q, %v; want %q", link, got, err, want)
			}
		}
		if got := content(t, dir, "dir/ü \"x\".txt"); got != "two" {
			t.Errorf("content = %q", got)
		}
		// A push or fetch from within the job goes to the real server.
		in(t, dir, "fetch", "--quiet", "--unshallow", "origin")
		if got := in(t, dir, "rev-list", "--count", "HEAD"); got != "2" {
			t.Errorf("after a fetch: %s commits", got)
		}
	}
}

func TestCheckoutRefs(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	first := commit(t, r, "main", map[string]string{"a": "1"})
	if err := r.Tag("v1.0", first, "first release"); err != nil {
		t.Fatal(err)
	}
	commit(t, r, "feature/x", map[string]string{"b": "1"})
	second := commit(t, r, "main", map[string]string{"a": "2"})
	pull, err := r.OpenPull(nil, "feature/x", "main")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, ref, sha   string
		wantSHA, wantRef string
		branch, files    string
	}{
		{"merge of a pull request", "refs/pull/1/merge", pull.MergeSHA, pull.MergeSHA, "refs/pull/1/merge", "", ".git a b"},
		{"tag by name", "v1.0", "", first, "refs/tags/v1.0", "", ".git a"},
		{"branch by name", "feature/x", "", pull.HeadSHA, "refs/heads/feature/x", "feature/x", ".git a b"},
		{"commit", first, "", first, "", "", ".git a"},
		{"branch at an older commit", "refs/heads/main", first, first, "refs/heads/main", "main", ".git a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, co := checkout(t, src, CheckoutSpec{Repo: repoOf(r), Ref: tt.ref, SHA: tt.sha, Depth: 1})
			if co.SHA != tt.wantSHA || co.Ref != tt.wantRef {
				t.Errorf("got %s at %q, want %s at %q", co.SHA, co.Ref, tt.wantSHA, tt.wantRef)
			}
			if got := in(t, dir, "rev-parse", "HEAD"); got != tt.wantSHA {
				t.Errorf("HEAD = %s", got)
			}
			if got := in(t, dir, "branch", "--show-current"); got != tt.branch {
				t.Errorf("on branch %q, want %q", got, tt.branch)
			}
			var names []string
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if got := strings.Join(names, " "); got != tt.files {
				t.Errorf("files %q, want %q", got, tt.files)
			}
		})
	}
	t.Run("all history", func(t *testing.T) {
		dir, _ := checkout(t, src, CheckoutSpec{Repo: repoOf(r), SHA: second, Ref: "refs/heads/main", Depth: 0})
		if got := in(t, dir, "for-each-ref", "--format=%(refname)"); got != "refs/heads/main\nrefs/remotes/origin/feature/x\nrefs/remotes/origin/main\nrefs/tags/v1.0" {
			t.Errorf("refs:\n%s", got)
		}
		if got := in(t, dir, "rev-list", "--count", "HEAD"); got != "2" {
			t.Errorf("%s commits", got)
		}
		if got := in(t, dir, "describe"); !strings.HasPrefix(got, "v1.0-1-g") {
			t.Errorf("describe = %q: an annotated tag stays one", got)
		}
		// A branch that is gone is gone from the next checkout too, and one below its name can follow.
		if err := r.DeleteRef("refs/heads/feature/x"); err != nil {
			t.Fatal(err)
		}
		commit(t, r, "feature", map[string]string{"c": "1"})
		dir, _ = checkout(t, src, CheckoutSpec{Repo: repoOf(r), SHA: second, Ref: "refs/heads/main", Depth: 0})
		if got := in(t, dir, "branch", "-r"); got != "origin/feature\n  origin/main" {
			t.Errorf("branches: %q", got)
		}
	})
	t.Run("some history", func(t *testing.T) {
		third := commit(t, r, "main", map[string]string{"a": "3"})
		dir, _ := checkout(t, src, CheckoutSpec{Repo: repoOf(r), SHA: third, Ref: "refs/heads/main", Depth: 2, Tags: true})
		if got := in(t, dir, "rev-list", "--count", "HEAD"); got != "2" {
			t.Errorf("%s commits, want 2", got)
		}
		if got := in(t, dir, "tag"); got != "v1.0" {
			t.Errorf("tags %q", got)
		}
	})
}

func TestCheckoutSparse(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	head := commit(t, r, "main", map[string]string{"top": "", "a/x": "", "a/y.go": "", "b/z.go": ""})
	for _, tt := range []struct {
		patterns []string
		noCone   bool
		want     []string
	}{
		{[]string{"a"}, false, []string{"a/x", "a/y.go", "top"}},
		{[]string{"*.go", "!b/*.go"}, true, []string{"a/y.go"}},
	} {
		dir, _ := checkout(t, src, CheckoutSpec{Repo: repoOf(r), SHA: head, Ref: "refs/heads/main", Depth: 1, Sparse: tt.patterns, NoCone: tt.noCone})
		var got []string
		for _, f := range []string{"a/x", "a/y.go", "b/z.go", "top"} {
			if _, err := os.Lstat(filepath.Join(dir, f)); err == nil {
				got = append(got, f)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%v: %s", tt.patterns, diff)
		}
		if got := in(t, dir, "status", "--porcelain"); got != "" {
			t.Errorf("%v: status %q", tt.patterns, got)
		}
	}
}

func TestCheckoutSubmodules(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	inner := createRepo(t, srv, "ada/inner")
	innerSHA := commit(t, inner, "main", map[string]string{"inner.txt": "inner"})
	outer := createRepo(t, srv, "ada/outer")
	modules := func(path, url string) githubtest.Entry {
		return githubtest.Entry{Path: ".gitmodules", Data: "[submodule \"" + path + "\"]\n\tpath = " + path + "\n\turl = " + url + "\n"}
	}
	outerSHA, err := outer.CommitEntries("main", "with inner", modules("libs/inner", "../inner"),
		githubtest.Entry{Path: "libs/inner", Data: innerSHA, Mode: "160000"}, githubtest.Entry{Path: "outer.txt", Data: "outer"})
	if err != nil {
		t.Fatal(err)
	}
	r := createRepo(t, srv, "ada/engine")
	head, err := r.CommitEntries("main", "with outer", modules("outer", srv.URL+"/ada/outer.git"),
		githubtest.Entry{Path: "outer", Data: outerSHA, Mode: "160000"})
	if err != nil {
		t.Fatal(err)
	}
	spec := CheckoutSpec{Repo: repoOf(r), SHA: head, Ref: "refs/heads/main", Depth: 1}
	for _, tt := range []struct {
		mode         string
		outer, inner bool
	}{{"false", false, false}, {"true", true, false}, {"recursive", true, true}} {
		spec.Submodules = tt.mode
		dir, _ := checkout(t, src, spec)
		_, err := os.Stat(filepath.Join(dir, "outer/outer.txt"))
		_, err2 := os.Stat(filepath.Join(dir, "outer/libs/inner/inner.txt"))
		if (err == nil) != tt.outer || (err2 == nil) != tt.inner {
			t.Errorf("submodules %s: outer %v, inner %v", tt.mode, err, err2)
		}
		if got := in(t, dir, "status", "--porcelain"); got != "" {
			t.Errorf("submodules %s: status %q", tt.mode, got)
		}
	}
	for _, url := range []string{"https://elsewhere.example/x.git", "file:///etc", srv.URL + "@evil.example/x.git", "ext::sh -c id", srv.URL + "/../../x"} {
		head, err := r.CommitEntries("main", "elsewhere", modules("outer", url))
		if err != nil {
			t.Fatal(err)
		}
		spec.SHA, spec.Submodules = head, "true"
		if _, err := src.Checkout(t.Context(), spec); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("submodule at %q: %v", url, err)
		}
	}
}

func TestCheckoutTokenAndOwner(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	head := commit(t, r, "main", map[string]string{"a": "1"})
	spec := CheckoutSpec{Repo: repoOf(r), SHA: head, Ref: "refs/heads/main", Depth: 1, Token: "t0ken"}
	dir, _ := checkout(t, src, spec)
	if got := in(t, dir, "config", "http."+srv.URL+"/.extraheader"); got != tokenHeader("t0ken") {
		t.Errorf("extraheader = %q", got)
	}
	spec.Token = ""
	dir, _ = checkout(t, src, spec)
	if got := content(t, dir, ".git/config"); strings.Contains(got, "extraheader") {
		t.Errorf("the next checkout has the token:\n%s", got)
	}
	spec.UID, spec.GID = 7, 7
	co, err := src.Checkout(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer co.Tar.Close()
	unpack(t, co.Tar, t.TempDir(), 7)
}

func TestCheckoutOfAnotherRepository(t *testing.T) {
	srv, src := hub(t, githubtest.Config{Token: "t0ken"}, "t0ken")
	r := createRepo(t, srv, "ada/private")
	r.SetPrivate(true)
	head := commit(t, r, "main", map[string]string{"a": "1"})
	other := tgr.Repo{FullName: "ada/private"}
	spec := CheckoutSpec{Repo: other, Depth: 1, Foreign: true, FetchToken: "t0ken"}
	dir, co := checkout(t, src, spec)
	if co.SHA != head || co.Ref != "refs/heads/main" || content(t, dir, "a") != "1" {
		t.Errorf("%+v", co)
	}
	// What one job's token opened stays closed to a job without it, and the source's own token does not help.
	for _, ref := range []string{"", "main", head} {
		if _, err := src.Checkout(t.Context(), CheckoutSpec{Repo: other, Ref: ref, Depth: 1, Foreign: true}); tgr.CodeOf(err) != tgr.NotFound {
			t.Errorf("ref %q without a token: %v", ref, err)
		}
	}
	createRepo(t, srv, "ada/empty")
	if _, err := src.Checkout(t.Context(), CheckoutSpec{Repo: tgr.Repo{FullName: "ada/empty"}, Foreign: true}); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("an empty repository: %v", err)
	}
}

func TestCheckoutRefuses(t *testing.T) {
	_, src := hub(t, githubtest.Config{}, "")
	repo := tgr.Repo{ID: 1, FullName: "ada/engine"}
	sha := strings.Repeat("a", 40)
	for name, spec := range map[string]CheckoutSpec{
		"lfs":        {Repo: repo, SHA: sha, LFS: true},
		"ref":        {Repo: repo, Ref: "a..b"},
		"climbing":   {Repo: repo, Ref: "refs/heads/../../x", SHA: sha},
		"sha":        {Repo: repo, SHA: "HEAD"},
		"submodules": {Repo: repo, SHA: sha, Submodules: "yes"},
		"token":      {Repo: repo, SHA: sha, Token: "a\nb"},
		"sparse":     {Repo: repo, SHA: sha, Sparse: []string{"a\nb"}},
		"repository": {Repo: tgr.Repo{FullName: "a b"}, SHA: sha},
	} {
		if _, err := src.Checkout(t.Context(), spec); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTemplatesAreEvicted(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	src.c.MaxCache = 300 << 10
	r := createRepo(t, srv, "ada/engine")
	for i := range 4 {
		head := commit(t, r, "main", map[string]string{"big": strings.Repeat("x", 100<<10) + string(rune('a'+i))})
		checkout(t, src, CheckoutSpec{Repo: repoOf(r), SHA: head, Ref: "refs/heads/main", Depth: 1})
	}
	entries, err := os.ReadDir(filepath.Join(src.c.Dir, "checkouts"))
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if e.IsDir() {
			t.Errorf("%s was left behind", e.Name())
		}
		total += fi.Size()
	}
	if total == 0 || total > src.c.MaxCache+10<<10 {
		t.Errorf("%d bytes of prepared checkouts are kept, want at most %d", total, src.c.MaxCache)
	}
}

func TestAction(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "actions/hello")
	first := commit(t, r, "main", map[string]string{"action.yml": "name: hello", "dist/index.js": "1"})
	if err := r.Tag("v1", first, "v1"); err != nil {
		t.Fatal(err)
	}
	commit(t, r, "main", map[string]string{"dist/index.js": "2"})
	for _, ref := range []string{"v1", first} {
		sha, stream, err := src.Action(t.Context(), Reader{}, "actions/hello", ref)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		unpack(t, stream, dir, 0)
		stream.Close()
		if got := content(t, dir, "dist/index.js"); sha != first || got != "1" {
			t.Errorf("%s: commit %s, content %q", ref, sha, got)
		}
	}
	srv.Script(githubtest.Fault{Status: 500, Times: 100})
	if _, stream, err := src.Action(t.Context(), Reader{}, "actions/hello", first); err != nil {
		t.Errorf("a known commit must not need the server: %v", err)
	} else {
		stream.Close()
	}
	if sha, stream, err := src.Action(t.Context(), Reader{}, "actions/hello", "v1"); err != nil || sha != first {
		t.Errorf("a tag that was used before must not need the server: %s, %v", sha, err)
	} else {
		stream.Close()
	}
	if _, _, err := src.Action(t.Context(), Reader{}, "actions/hello", "v9"); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("a server that fails: %v", err)
	}
	for _, name := range []string{"actions", "a/b/c", "../x"} {
		if _, _, err := src.Action(t.Context(), Reader{}, name, first); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("Action(%q): %v", name, err)
		}
	}
}

// BenchmarkCheckout measures a checkout from a clone that has the commit: the first one of a commit, with git, and
// the next ones.
func BenchmarkCheckout(b *testing.B) {
	srv, src := hub(b, githubtest.Config{}, "")
	r, err := srv.CreateRepo("ada/engine")
	if err != nil {
		b.Fatal(err)
	}
	files := map[string]string{}
	for _, d := range []string{"a", "b", "c", "d", "e"} {
		for _, f := range []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10"} {
			files[d+"/"+f] = strings.Repeat(d+f+"\n", 500)
		}
	}
	head, err := r.Commit("main", "files", files)
	if err != nil {
		b.Fatal(err)
	}
	spec := CheckoutSpec{Repo: repoOf(r), SHA: head, Ref: "refs/heads/main", Depth: 1}
	once := func(b *testing.B) {
		co, err := src.Checkout(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, co.Tar); err != nil {
			b.Fatal(err)
		}
		co.Tar.Close()
	}
	once(b)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			if err := os.RemoveAll(filepath.Join(src.c.Dir, "checkouts")); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			once(b)
		}
	})
	b.Run("repeated", func(b *testing.B) {
		for b.Loop() {
			once(b)
		}
	})
}

func TestPackTreeNeedsNoGit(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := packTree(&b, dir, 1, 2); err != nil {
		t.Fatal(err)
	}
	h, err := tar.NewReader(&b).Next()
	if err != nil || h.Name != "f" || h.Mode != 0o644 || h.Uid != 1 || h.Gid != 2 {
		t.Errorf("%+v, %v", h, err)
	}
}

// The address of a submodule, which anybody writes, is refused, or it is a repository of the server that the token is for,
// whoever reads it: by its text and by the rules of URLs.
func FuzzSameServer(f *testing.F) {
	s := &Source{c: SourceConfig{BaseURL: "https://git.example.com/scm"}}
	for _, addr := range []string{"https://git.example.com/scm/a/b", "https://git.example.com/scm/../admin", "https://git.example.com/scm@evil/x",
		"https://git.example.com.evil/scm/", "https://git.example.com/scm/%2e%2e/x", "ext::sh -c true", "../a", "file:///etc", "https://u:p@git.example.com/scm/x",
		"https://git.example.com/scm/\n", "-u", "https://git.example.com/scm/a\\..\\b"} {
		f.Add(addr)
	}
	f.Fuzz(func(t *testing.T, addr string) {
		if s.sameServer(addr) != nil {
			return
		}
		u, err := url.Parse(addr)
		if err != nil || u.Host != "git.example.com" || u.Scheme != "https" || u.User != nil {
			t.Fatalf("%q is taken for a repository of the server: %v", addr, err)
		}
		if clean := path.Clean(u.Path); clean != "/scm" && !strings.HasPrefix(clean, "/scm/") {
			t.Fatalf("%q leads to %q, outside the server's folder", addr, clean)
		}
	})
}
