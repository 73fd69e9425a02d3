package github

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

// shop is a server with repositories of two owners, an App that may read them all, and a source that has its credentials.
type shop struct {
	t      *testing.T
	srv    *githubtest.Server
	client *Client
	source *Source
	repos  map[string]*githubtest.Repo
}

func openShop(t *testing.T) *shop {
	t.Helper()
	srv, _ := hub(t, githubtest.Config{AppID: 42}, "")
	s := &shop{t: t, srv: srv, repos: map[string]*githubtest.Repo{}}
	for _, name := range []string{"acme/app", "acme/tool", "other/tool", "other/free"} {
		s.repos[name] = createRepo(t, srv, name)
		commit(t, s.repos[name], "main", map[string]string{"action.yml": name})
		s.repos[name].SetPrivate(name != "other/free")
	}
	var err error
	if s.client, err = NewClient(ClientConfig{BaseURL: srv.API(), AppID: 42, AppKey: appKey(t)}); err != nil {
		t.Fatal(err)
	}
	if s.source, err = NewSource(SourceConfig{Dir: t.TempDir(), BaseURL: srv.URL, Token: s.client.RepoToken}); err != nil {
		t.Fatal(err)
	}
	return s
}

// jobToken is the token of a job of a repository.
func (s *shop) jobToken(repo string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		t, err := s.client.JobToken(ctx, repo, map[string]string{"contents": "read"})
		return t.Value, err
	}
}

// uses fetches a repository in both ways that a workflow can name it, and returns the error of either.
func (s *shop) uses(r Reader, name, ref string) error {
	s.t.Helper()
	sha, tar, err := s.source.Action(s.t.Context(), r, name, ref)
	if err == nil {
		data, rerr := io.ReadAll(tar)
		tar.Close()
		if rerr != nil || sha != s.repos[name].SHA("main") || !strings.Contains(string(data), name) {
			s.t.Errorf("%s@%s as an action is %s, %d bytes, %v", name, ref, sha, len(data), rerr)
		}
	}
	_, sha, data, ferr := s.source.RemoteFile(s.t.Context(), r, name, ref, "action.yml")
	if (err == nil) != (ferr == nil) || tgr.CodeOf(err) != tgr.CodeOf(ferr) {
		s.t.Errorf("%s@%s: as an action: %v; a file of it: %v", name, ref, err, ferr)
	}
	if ferr == nil && (sha != s.repos[name].SHA("main") || string(data) != name) {
		s.t.Errorf("a file of %s@%s is %s, %q", name, ref, sha, data)
	}
	return err
}

// The server's own credentials read for trusted runs what belongs to the owner of their repository, and for all others
// nothing but their repository: also where a trusted run has left it in the cache.
func TestUsesOfPrivateRepositories(t *testing.T) {
	s := openShop(t)
	trusted := Reader{Repo: "acme/app", Trusted: true, Token: s.jobToken("acme/app")}
	fork := Reader{Repo: "acme/app", Token: s.jobToken("acme/app")}
	for _, tt := range []struct {
		who  string
		r    Reader
		name string
		says string // "": it is read
	}{
		{"fork, before anybody", fork, "acme/tool", "acme/tool: not found, or a run of a fork, or of Dependabot, may not read it: it reads public repositories, and acme/app"},
		{"trusted", trusted, "acme/app", ""},
		{"trusted", trusted, "acme/tool", ""},
		{"trusted", trusted, "other/free", ""},
		{"trusted", trusted, "other/tool", "other/tool: not found, or it is private: with the server's credentials only repositories of acme are read"},
		{"trusted without a token", Reader{Repo: "acme/app", Trusted: true}, "other/tool", "other/tool: not found, or it is private"},
		{"another owner", Reader{Repo: "other/app", Trusted: true}, "acme/tool", "only repositories of other are read"},
		{"another owner", Reader{Repo: "other/app", Trusted: true}, "other/tool", ""},
		{"trusted, other case", Reader{Repo: "ACME/app", Trusted: true}, "acme/tool", ""},
		{"fork", fork, "acme/app", ""},
		{"fork", fork, "acme/tool", "acme/tool: not found, or a run of a fork"},
		{"fork", fork, "other/free", ""},
		{"fork", fork, "other/tool", "other/tool: not found, or a run of a fork"},
		{"nobody", Reader{}, "acme/app", "acme/app: not found, or a run of a fork"},
	} {
		t.Run(tt.who+" "+tt.name, func(t *testing.T) {
			s.t = t
			for _, ref := range []string{"main", "refs/heads/main", s.repos[tt.name].SHA("main")} {
				err := s.uses(tt.r, tt.name, ref)
				if tt.says == "" && err != nil {
					t.Errorf("@%s: %v", ref, err)
				}
				if tt.says != "" && (tgr.CodeOf(err) != tgr.NotFound || !strings.Contains(tgr.MessageOf(err), tt.says)) {
					t.Errorf("@%s: %v, want not_found: %s", ref, err, tt.says)
				}
			}
		})
	}
}

// What a job could fetch itself it is given: with its own token, which is asked for only where a server shows nothing without.
func TestUsesWithTheJobsToken(t *testing.T) {
	s := openShop(t)
	asked := 0
	given := s.jobToken("other/tool")
	r := Reader{Repo: "acme/app", Token: func(ctx context.Context) (string, error) {
		asked++
		return given(ctx)
	}}
	if err := s.uses(r, "other/free", "main"); err != nil || asked != 0 {
		t.Errorf("a public repository: %v, and the token was asked for %d times", err, asked)
	}
	if err := s.uses(r, "other/tool", "main"); err != nil || asked == 0 {
		t.Errorf("what the job's token reads: %v, and it was asked for %d times", err, asked)
	}
	sha := s.repos["other/tool"].SHA("main")
	r.Token = nil
	if err := s.uses(r, "other/tool", sha); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("the next job, without such a token: %v", err)
	}
	r.Token = func(context.Context) (string, error) { return "", fmt.Errorf("no answer") }
	if err := s.uses(r, "other/tool", sha); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("a token that could not be made: %v", err)
	}
}

// While the server does not answer, those go on who may have what is cached, and nobody else.
func TestUsesWithoutTheServer(t *testing.T) {
	s := openShop(t)
	trusted := Reader{Repo: "acme/app", Trusted: true}
	for _, name := range []string{"acme/tool", "other/free"} {
		if err := s.uses(trusted, name, "main"); err != nil {
			t.Fatal(err)
		}
	}
	s.repos["other/free"].SetPrivate(true) // what was public when it was fetched is no secret
	s.srv.Script(githubtest.Fault{Path: ".git/", Status: 503, Times: 1000})
	for _, tt := range []struct {
		r    Reader
		name string
		ok   bool
	}{
		{trusted, "acme/tool", true}, {trusted, "other/free", true},
		{Reader{Repo: "acme/app"}, "acme/tool", false}, {Reader{Repo: "acme/app"}, "other/free", true},
		{Reader{Repo: "other/app", Trusted: true}, "acme/tool", false},
	} {
		for _, ref := range []string{"main", s.repos[tt.name].SHA("main")} {
			_, tar, err := s.source.Action(t.Context(), tt.r, tt.name, ref)
			if err == nil {
				tar.Close()
			}
			if (err == nil) != tt.ok || err != nil && tgr.CodeOf(err) != tgr.Unavailable {
				t.Errorf("%+v, %s@%s: %v", tt.r, tt.name, ref, err)
			}
		}
	}
}

// Submodules, which are of any repository too, come with the server's credentials where uses would, else with the step's
// token; and a prepared checkout is for those who could have prepared it.
func TestCheckoutOfPrivateSubmodules(t *testing.T) {
	s := openShop(t)
	app := s.repos["acme/app"]
	with := func(name string) CheckoutSpec {
		sha, err := app.CommitEntries("with-"+strings.ReplaceAll(name, "/", "-"), "a submodule",
			githubtest.Entry{Path: ".gitmodules", Data: "[submodule \"m\"]\n\tpath = m\n\turl = " + s.srv.URL + "/" + name + "\n"},
			githubtest.Entry{Path: "m", Data: s.repos[name].SHA("main"), Mode: "160000"})
		if err != nil {
			t.Fatal(err)
		}
		return CheckoutSpec{Repo: repoOf(app), SHA: sha, Depth: 1, Submodules: "true"}
	}
	token := func(repo string) string {
		value, err := s.jobToken(repo)(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	job := func(trusted bool) (Reader, string) { // of one job, which checks out with its own token
		value := token("acme/app")
		return Reader{Repo: "acme/app", Trusted: trusted, Token: func(context.Context) (string, error) { return value, nil }}, value
	}
	pat := token("other/tool")
	for _, name := range []string{"acme/tool", "other/tool", "other/free", "acme/app"} {
		spec := with(name)
		for _, tt := range []struct {
			who     string
			trusted bool
			pat     string
			reads   []string
		}{
			{"a fork, before anybody", false, "", []string{"other/free", "acme/app"}},
			{"a trusted run", true, "", []string{"acme/tool", "other/free", "acme/app"}},
			{"a trusted run with another token", true, pat, []string{"acme/tool", "other/tool", "other/free", "acme/app"}},
			{"a trusted run, again", true, "", []string{"acme/tool", "other/free", "acme/app"}},
			{"a fork", false, "", []string{"other/free", "acme/app"}},
		} {
			spec.For, spec.FetchToken = job(tt.trusted)
			if tt.pat != "" {
				spec.FetchToken = tt.pat
			}
			co, err := s.source.Checkout(t.Context(), spec)
			if err == nil {
				co.Tar.Close()
			}
			if want := slices.Contains(tt.reads, name); (err == nil) != want {
				t.Errorf("%s, submodule %s: %v, want it read: %v", tt.who, name, err, want)
			}
		}
	}
	spec := with("acme/tool")
	for i := range 2 { // the jobs of a repository share what is prepared
		spec.For, spec.FetchToken = job(true)
		before := len(s.srv.Requests())
		co, err := s.source.Checkout(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		co.Tar.Close()
		if asked := len(s.srv.Requests()) - before; i == 1 && asked != 0 {
			t.Errorf("the second job asked the server %d times", asked)
		}
	}
}

// orphan is a commit of the repository that no branch or tag has; with a ref, that one does.
func orphan(t *testing.T, r *githubtest.Repo, ref string) string {
	t.Helper()
	sha := commit(t, r, "hidden", map[string]string{"action.yml": "evil " + ref})
	if ref != "" {
		if _, err := r.Git("update-ref", ref, sha); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Git("update-ref", "-d", "refs/heads/hidden"); err != nil {
		t.Fatal(err)
	}
	return sha
}

// A server hands out, under the name of a repository, what is in none of its branches and tags: the commits of its forks.
func TestUsesOnlyOfOwnHistory(t *testing.T) {
	srv, err := githubtest.New(githubtest.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	r := createRepo(t, srv, "acme/tool")
	first := commit(t, r, "main", map[string]string{"action.yml": "1"})
	second := commit(t, r, "main", map[string]string{"action.yml": "2"})
	commit(t, r, "old", map[string]string{"action.yml": "old"})
	old := commit(t, r, "old", map[string]string{"action.yml": "older than the tag"})
	tagged := commit(t, r, "old", map[string]string{"action.yml": "tagged"})
	if err := r.Tag("v1", tagged, "annotated"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Git("update-ref", "-d", "refs/heads/old"); err != nil {
		t.Fatal(err)
	}
	tip := commit(t, r, "main", map[string]string{"action.yml": "3"})
	pull, dangling := orphan(t, r, "refs/pull/1/head"), orphan(t, r, "")
	named := strings.Repeat("ab", 20)
	for name, sha := range map[string]string{named: tip, first: tip, pull: tip} {
		if err := r.Branch(name, sha); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := r.Git("rev-parse", tip+"^{tree}")
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []struct {
		name   string
		config []string // of git, at the server
		file   bool
	}{
		{name: "as GitHub"},
		{name: "without filters", config: []string{"config", "uploadpack.allowFilter", "false"}},
		{name: "with a tag of a tree", config: []string{"update-ref", "refs/tags/tree", tree}},
		{name: "with filters and a tag of a tree", config: []string{"config", "uploadpack.allowFilter", "true"}},
		{name: "a folder", file: true},
	} {
		t.Run(server.name, func(t *testing.T) {
			if server.config != nil {
				if _, err := r.Git(server.config...); err != nil {
					t.Fatal(err)
				}
			}
			c := SourceConfig{Dir: t.TempDir(), BaseURL: srv.URL}
			if server.file {
				c.Remote = func(tgr.Repo) string { return "file://" + r.Dir }
			}
			src, err := NewSource(c)
			if err != nil {
				t.Fatal(err)
			}
			// That a job has checked it out does not make it the repository's.
			co, err := src.Checkout(t.Context(), CheckoutSpec{Repo: tgr.Repo{FullName: "acme/tool"}, SHA: pull, Depth: 1, Foreign: true})
			if err != nil {
				t.Fatal(err)
			}
			co.Tar.Close()
			for _, tt := range []struct{ ref, want string }{
				{first, "1"}, {second, "2"}, {tip, "3"}, {"main", "3"}, {tagged, "tagged"}, {old, "older than the tag"}, {"v1", "tagged"},
				{pull, ""}, {dangling, ""}, {named, ""}, {"refs/pull/1/head", ""}, {strings.Repeat("0", 40), ""}, {first[:7], ""},
			} {
				_, _, data, err := src.RemoteFile(t.Context(), Reader{}, "acme/tool", tt.ref, "action.yml")
				if string(data) != tt.want || (err == nil) != (tt.want != "") {
					t.Errorf("a file at %s: %q, %v; want %q", tt.ref, data, err, tt.want)
				}
				_, tar, aerr := src.Action(t.Context(), Reader{}, "acme/tool", tt.ref)
				if aerr == nil {
					tar.Close()
				}
				if (aerr == nil) != (tt.want != "") || tgr.CodeOf(aerr) != tgr.CodeOf(err) {
					t.Errorf("an action at %s: %v, want as %v", tt.ref, aerr, err)
				}
				if code := tgr.CodeOf(err); err != nil && code != tgr.NotFound && code != tgr.Invalid || err != nil && !strings.Contains(tgr.MessageOf(err), "acme/tool") {
					t.Errorf("%s: %v", tt.ref, err)
				}
			}
		})
	}
}

// What was found once is not asked for again, and while the server does not answer nothing is found.
func TestUsesAsksOnce(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "acme/tool")
	first := commit(t, r, "main", map[string]string{"action.yml": "1"})
	second := commit(t, r, "main", map[string]string{"action.yml": "2"})
	commit(t, r, "main", map[string]string{"action.yml": "3"})
	read := func(sha string) error {
		_, _, _, err := src.RemoteFile(t.Context(), Reader{}, "acme/tool", sha, "action.yml")
		return err
	}
	if err := read(first); err != nil {
		t.Fatal(err)
	}
	asked := len(srv.Requests())
	if err := read(first); err != nil || len(srv.Requests()) != asked {
		t.Errorf("again: %v, and the server was asked %d times", err, len(srv.Requests())-asked)
	}
	srv.Script(githubtest.Fault{Status: 503, Times: 1000})
	if err := read(first); err != nil {
		t.Errorf("without the server: %v", err)
	}
	if err := read(second); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("another one without the server: %v", err)
	}
	srv.Unscript()
	if err := read(second); err != nil {
		t.Errorf("the server is back: %v", err)
	}
}

// A server that does not send its history is not waited for without end.
func TestUsesHistoryTakesTooLong(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	src.c.Timeout = 2 * time.Second
	r := createRepo(t, srv, "acme/tool")
	first := commit(t, r, "main", map[string]string{"action.yml": "1"})
	commit(t, r, "main", map[string]string{"action.yml": "2"})
	srv.Script(githubtest.Fault{Path: "git-upload-pack", Times: 2}) // the refs, asked for twice
	srv.Script(githubtest.Fault{Path: "git-upload-pack", Delay: time.Hour, Times: 10})
	start := time.Now()
	_, _, err := src.Action(t.Context(), Reader{}, "acme/tool", first)
	if took := time.Since(start); tgr.CodeOf(err) != tgr.Unavailable || !strings.Contains(tgr.MessageOf(err), "whether commit "+first+" is on a branch or tag") || took > 30*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
}
