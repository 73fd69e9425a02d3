package github

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

// appDesk is a client that is the App 42, and a server with two repositories.
func appDesk(t *testing.T, may map[string]string) (*Client, *githubtest.Server) {
	t.Helper()
	srv, _ := hub(t, githubtest.Config{AppID: 42, AppPermissions: may}, "")
	createRepo(t, srv, "ada/engine")
	createRepo(t, srv, "ada/other")
	client, err := NewClient(ClientConfig{BaseURL: srv.API(), AppID: 42, AppKey: appKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	return client, srv
}

func get(t *testing.T, url, token string) int {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// A job's token reaches its own repository alone, with what was stated and the App has, until it is revoked.
func TestJobToken(t *testing.T) {
	client, srv := appDesk(t, map[string]string{"metadata": "read", "contents": "write", "issues": "read"})
	tok, err := client.JobToken(t.Context(), "ada/engine", map[string]string{
		"contents": "read", "issues": "write", "packages": "write", "id-token": "write", "pull-requests": "none"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"metadata": "read", "contents": "read", "issues": "read"}, tok.Granted); diff != "" {
		t.Errorf("granted (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"issues: write", "packages: write"}, tok.Missing); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if d := time.Until(tok.Expires); d < 50*time.Minute || d > 70*time.Minute {
		t.Errorf("it expires in %s", d)
	}
	api := srv.API()
	for path, want := range map[string]int{"/repos/ada/engine": 200, "/repos/ada/other": 404, "/repos/ada/engine/pulls/1": 403} {
		if got := get(t, api+path, tok.Value); got != want {
			t.Errorf("GET %s: %d, want %d", path, got, want)
		}
	}
	for range 2 { // the second time it is gone already
		if err := client.RevokeToken(t.Context(), tok.Value); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, api+"/repos/ada/engine", tok.Value); got == 200 {
		t.Error("the token is good after it was revoked")
	}
	for _, given := range srv.InstallationTokens() {
		if given.Value == tok.Value && (!given.Revoked || len(given.Repositories) != 1) {
			t.Errorf("%+v", given)
		}
	}
}

// Without any permission a token is not one with all of them.
func TestJobTokenWithoutPermissions(t *testing.T) {
	client, _ := appDesk(t, nil)
	tok, err := client.JobToken(t.Context(), "ada/engine", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"metadata": "read"}, tok.Granted); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestJobTokenFaults(t *testing.T) {
	client, srv := appDesk(t, nil)
	if _, err := client.JobToken(t.Context(), "ada/gone", nil); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("where the App is not installed: %v", err)
	}
	srv.Script(githubtest.Fault{Method: "POST", Path: "access_tokens", Status: 503, Times: 100})
	if _, err := client.JobToken(t.Context(), "ada/engine", nil); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("GitHub is down: %v", err)
	}
	pat, err := NewClient(ClientConfig{BaseURL: srv.API(), Token: "pat"})
	if err != nil {
		t.Fatal(err)
	}
	if pat.CanMakeTokens() {
		t.Error("a token can make tokens")
	}
	if _, err := pat.JobToken(t.Context(), "ada/engine", nil); err == nil {
		t.Error("a token made a token")
	}
}

// An App that got less than it had asked for is asked again what it may do.
func TestJobTokenAfterTheAppWasChanged(t *testing.T) {
	may := map[string]string{"metadata": "read", "contents": "write"}
	client, _ := appDesk(t, may)
	if _, err := client.JobToken(t.Context(), "ada/engine", map[string]string{"contents": "write"}); err != nil {
		t.Fatal(err)
	}
	may["contents"] = "read"
	tok, err := client.JobToken(t.Context(), "ada/engine", map[string]string{"contents": "write"})
	if err != nil || tok.Granted["contents"] != "read" || len(tok.Missing) != 1 {
		t.Errorf("%+v, %v", tok, err)
	}
}

// Actions and workflows of others are read without a token where the App is not installed; the repository of an event is not.
func TestSourceWhereTheAppIsNotInstalled(t *testing.T) {
	srv, err := githubtest.New(githubtest.Config{AppID: 42, AppRepos: []string{"ada/engine"}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	repo := createRepo(t, srv, "others/action")
	commit(t, repo, "main", map[string]string{"a": "1"})
	client, err := NewClient(ClientConfig{BaseURL: srv.API(), AppID: 42, AppKey: appKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	source, err := NewSource(SourceConfig{Dir: t.TempDir(), BaseURL: srv.URL, Token: client.RepoToken})
	if err != nil {
		t.Fatal(err)
	}
	full, sha, data, err := source.RemoteFile(t.Context(), Reader{Repo: "ada/engine", Trusted: true}, "others/action", "main", "a")
	if err != nil || full != "refs/heads/main" || sha != repo.SHA("main") || string(data) != "1" {
		t.Errorf("RemoteFile: %s, %s, %q, %v", full, sha, data, err)
	}
	if _, err := source.Fetch(t.Context(), tgr.Repo{ID: repo.ID, FullName: "others/action"}, sha, ""); err == nil {
		t.Error("an event's repository was read without the App")
	}
	repo.SetPrivate(true)
	if _, _, err := source.Action(t.Context(), Reader{Repo: "ada/engine", Trusted: true}, "others/action", "main"); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("a private action of others: %v", err)
	}
}

// Several who need an owner's installation at once, of whom each may find it, do not meet in what it is made of.
func TestInstallationsAtOnce(t *testing.T) {
	for range 5 {
		client, srv := appDesk(t, map[string]string{"metadata": "read", "contents": "read"})
		createRepo(t, srv, "bob/one")
		var all sync.WaitGroup
		for _, repo := range []string{"ada/engine", "ada/other", "bob/one", "ada/engine"} {
			all.Go(func() {
				if id, err := client.RepoID(t.Context(), repo); err != nil || id == 0 {
					t.Errorf("%s: %d, %v", repo, id, err)
				}
			})
		}
		all.Wait()
	}
}
