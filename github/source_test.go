package github

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

// hub starts a stand-in and a source that gets its repositories from there.
func hub(t testing.TB, c githubtest.Config, token string) (*githubtest.Server, *Source) {
	t.Helper()
	srv, err := githubtest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	return srv, newSource(t, srv, token)
}

func newSource(t testing.TB, srv *githubtest.Server, token string) *Source {
	t.Helper()
	src, err := NewSource(SourceConfig{Dir: t.TempDir(), BaseURL: srv.URL,
		Token: func(context.Context, string) (string, error) { return token, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func createRepo(t testing.TB, srv *githubtest.Server, name string) *githubtest.Repo {
	t.Helper()
	r, err := srv.CreateRepo(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func commit(t testing.TB, r *githubtest.Repo, branch string, files map[string]string) string {
	t.Helper()
	sha, err := r.Commit(branch, "change "+branch, files)
	if err != nil {
		t.Fatal(err)
	}
	return sha
}

func repoOf(r *githubtest.Repo) tgr.Repo {
	return tgr.Repo{ID: r.ID, FullName: r.FullName, CloneURL: r.URL, DefaultBranch: r.DefaultBranch}
}

const ciYAML = "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: true\n"

func TestSourceFetchAndFiles(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	first := commit(t, r, "main", map[string]string{".github/workflows/ci.yml": ciYAML, "README.md": "one"})
	second, err := r.CommitEntries("main", "more",
		githubtest.Entry{Path: ".github/workflows/link.yml", Data: "/etc/passwd", Mode: "120000"},
		githubtest.Entry{Path: ".github/workflows/big.yml", Data: strings.Repeat("#", 1<<20+1)},
		githubtest.Entry{Path: ".github/workflows/sub/deep.yml", Data: "deep"},
		githubtest.Entry{Path: "README.md", Data: "two"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, repo := t.Context(), repoOf(r)

	sha, err := src.Fetch(ctx, repo, first, "refs/heads/main")
	if err != nil || sha != first {
		t.Fatalf("Fetch(first) = %q, %v", sha, err)
	}
	if sha, err = src.Fetch(ctx, repo, "", "refs/heads/main"); err != nil || sha != second {
		t.Fatalf("Fetch(main) = %q, %v; want %s", sha, err, second)
	}
	tree, err := src.Tree(ctx, repo, second)
	if want, werr := r.Git("rev-parse", second+"^{tree}"); err != nil || werr != nil || tree != want {
		t.Errorf("Tree(second) = %q, %v; want %q, %v", tree, err, want, werr)
	}
	if tree, err = src.Tree(ctx, repo, strings.Repeat("0", 40)); err == nil {
		t.Errorf("Tree of a commit that is not there = %q", tree)
	}
	files, err := src.Files(ctx, repo, first, ".github/workflows")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]File{{Path: ".github/workflows/ci.yml", Size: int64(len(ciYAML)), Mode: 0o100644, Data: []byte(ciYAML)}}, files); diff != "" {
		t.Error(diff)
	}
	files, err = src.Files(ctx, repo, second, ".github/workflows")
	if err != nil || len(files) != 3 {
		t.Fatalf("Files(second) = %d files, %v; want 3: directories are not followed", len(files), err)
	}
	for i, want := range []string{"at most 1048576 are read", "", "is a symbolic link"} {
		if got := files[i].Err; (got == nil) != (want == "") || got != nil && !strings.Contains(got.Error(), want) {
			t.Errorf("%s: Err = %v, want %q", files[i].Path, got, want)
		}
	}
	if data, err := src.ReadFile(ctx, repo, first, "README.md"); err != nil || string(data) != "one" {
		t.Errorf("ReadFile(first) = %q, %v", data, err)
	}
	if _, err := src.ReadFile(ctx, repo, first, "nothing.txt"); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("ReadFile of nothing: %v", err)
	}
	if files, err := src.Files(ctx, repo, first, "no/such/dir"); err != nil || len(files) != 0 {
		t.Errorf("Files of no directory = %v, %v", files, err)
	}
	for _, bad := range []string{"../x", "/etc"} {
		if _, err := src.ReadFile(ctx, repo, first, bad); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("ReadFile(%q): %v", bad, err)
		}
	}
}

func TestSourceErrorsNameTheThing(t *testing.T) {
	srv, src := hub(t, githubtest.Config{Token: "s3cret-token"}, "")
	r := createRepo(t, srv, "ada/engine")
	head := commit(t, r, "main", map[string]string{"a": "a"})
	private := createRepo(t, srv, "ada/private")
	private.SetPrivate(true)
	commit(t, private, "main", map[string]string{"a": "a"})
	missing := strings.Repeat("ab", 20)
	for _, tt := range []struct {
		name     string
		repo     tgr.Repo
		sha, ref string
		code     tgr.Code
		says     []string
	}{
		{"no such commit", repoOf(r), missing, "refs/heads/main", tgr.NotFound, []string{missing, "ada/engine"}},
		{"no such ref", repoOf(r), "", "refs/heads/gone", tgr.NotFound, []string{"refs/heads/gone", "ada/engine"}},
		{"no such repository", tgr.Repo{ID: 9, FullName: "ada/none"}, head, "", tgr.NotFound, []string{"ada/none"}},
		{"no token", repoOf(private), "", "refs/heads/main", tgr.Unauthorized, []string{"ada/private"}},
		{"an option as ref", repoOf(r), "", "--upload-pack=/bin/true", tgr.Invalid, []string{"upload-pack"}},
		{"an option as commit", repoOf(r), "-x", "", tgr.Invalid, []string{"-x"}},
		{"a path as repository", tgr.Repo{ID: 7, FullName: "../.."}, head, "", tgr.Invalid, []string{"../.."}},
		{"nothing", repoOf(r), "", "", tgr.Invalid, []string{"ada/engine"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := src.Fetch(t.Context(), tt.repo, tt.sha, tt.ref)
			if tgr.CodeOf(err) != tt.code {
				t.Errorf("code %q, want %q: %v", tgr.CodeOf(err), tt.code, err)
			}
			for _, s := range tt.says {
				if !strings.Contains(tgr.MessageOf(err), s) {
					t.Errorf("%q does not name %q", tgr.MessageOf(err), s)
				}
			}
		})
	}
	srv.Script(githubtest.Fault{Path: "engine.git", Status: 503})
	if _, err := src.Fetch(t.Context(), repoOf(r), "", "refs/heads/main"); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("a server that fails: %v", err)
	}
}

func TestSourceTokenLeavesNoTrace(t *testing.T) {
	const token = "s3cret-token"
	srv, src := hub(t, githubtest.Config{Token: token}, token)
	r := createRepo(t, srv, "ada/private")
	r.SetPrivate(true)
	head := commit(t, r, "main", map[string]string{"a": "a"})
	if _, err := src.Fetch(t.Context(), repoOf(r), head, "refs/heads/main"); err != nil {
		t.Fatal(err)
	}
	co, err := src.Checkout(t.Context(), CheckoutSpec{Repo: repoOf(r), SHA: head, Ref: "refs/heads/main", Depth: 1, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	co.Tar.Close()
	err = filepath.WalkDir(src.c.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), token) || strings.Contains(string(data), strings.TrimPrefix(tokenHeader(token), "AUTHORIZATION: basic ")) {
			t.Errorf("%s holds the token", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSourceResolve(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	head := commit(t, r, "main", map[string]string{"a": "a"})
	if err := r.Tag("v1", head, "an annotated tag"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"main", "refs/heads/main", "v1", "refs/tags/v1", head} {
		if got, err := src.Resolve(t.Context(), repoOf(r), ref); err != nil || got != head {
			t.Errorf("Resolve(%q) = %q, %v; want %s", ref, got, err, head)
		}
	}
	if _, err := src.Resolve(t.Context(), repoOf(r), "v2"); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("Resolve of nothing: %v", err)
	}
}

func TestSourceConcurrentFetch(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	head := commit(t, r, "main", map[string]string{"a": "a"})
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := src.Fetch(t.Context(), repoOf(r), head, "refs/heads/main")
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	posts := 0
	for _, req := range srv.Requests() {
		if strings.HasSuffix(req.Path, "/info/refs") {
			posts++
		}
	}
	if posts != 1 {
		t.Errorf("8 fetches of one commit asked the server %d times, want once", posts)
	}
}

func TestSourceOfLocalRepository(t *testing.T) {
	srv, _ := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	head := commit(t, r, "main", map[string]string{"a": "a"})
	src, err := NewSource(SourceConfig{Dir: t.TempDir(), Remote: func(tgr.Repo) string { return "file://" + r.Dir }})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := src.Fetch(t.Context(), tgr.Repo{FullName: "local/engine"}, "", "refs/heads/main"); err != nil || got != head {
		t.Errorf("Fetch = %q, %v; want %s", got, err, head)
	}
}

// TestSourceAfterKill checks that what a killed git left behind does not stop the next one, and that the lock of a
// clone is not given away while a git of a dead server is at work.
func TestSourceAfterKill(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	first := commit(t, r, "main", map[string]string{"a": "1"})
	if _, err := src.Fetch(t.Context(), repoOf(r), first, "refs/heads/main"); err != nil {
		t.Fatal(err)
	}
	c, err := src.clone(repoOf(r))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shallow.lock", "packed-refs.lock", strings.TrimPrefix(keepRef("", "refs/heads/main"), "/") + ".lock", "objects/pack/tmp_pack_x"} {
		if err := os.WriteFile(filepath.Join(c.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	second := commit(t, r, "main", map[string]string{"a": "2"})
	if _, err := src.Fetch(t.Context(), repoOf(r), second, "refs/heads/main"); err != nil {
		t.Fatal(err)
	}
	// Another process holds the lock: a fetch waits for it, and gives up with its context.
	held, err := lockFile(t.Context(), c.dir+".lock")
	if err != nil {
		t.Fatal(err)
	}
	third := commit(t, r, "main", map[string]string{"a": "3"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := src.Fetch(ctx, repoOf(r), third, "refs/heads/main"); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("while the lock is held: %v", err)
	}
	done := make(chan error)
	go func() {
		_, err := src.Fetch(t.Context(), repoOf(r), third, "refs/heads/main")
		done <- err
	}()
	held.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(src.locks) != 0 {
		t.Errorf("%d locks are left", len(src.locks))
	}
}

func TestSourcePacksAreMerged(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	head := commit(t, r, "main", map[string]string{"a": "1"})
	if _, err := src.Fetch(t.Context(), repoOf(r), head, "refs/heads/main"); err != nil {
		t.Fatal(err)
	}
	c, err := src.clone(repoOf(r))
	if err != nil {
		t.Fatal(err)
	}
	packs, err := c.packs()
	if err != nil || len(packs) != 1 {
		t.Fatalf("%d packs after one fetch, %v", len(packs), err)
	}
	for i := range maxPacks {
		for _, ext := range []string{".pack", ".idx"} {
			data, err := os.ReadFile(strings.TrimSuffix(packs[0], ".pack") + ext)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(c.dir, "objects", "pack", fmt.Sprintf("pack-%040x%s", i, ext))
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if packs, err = c.packs(); err != nil || len(packs) != 1 || !c.has(t.Context(), head) {
		t.Errorf("%d packs, %v", len(packs), err)
	}
}
