package results

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// Artifacts of other runs are asked for in GitHub's REST API, by a step that says which run: actions/download-artifact
// with run-id. Such a step, if the run is one of ours, is told that the API is here. Here are the artifacts of its own
// repository; whatever else it asks is sent on to GitHub by a redirect, so that nothing is relayed: the step reaches
// GitHub over its own network, or does not.
//
// https://docs.github.com/en/rest/actions/artifacts

// apiPath is where the API is, below the address of the services.
const apiPath = "/github"

// Pages of a list of artifacts; GitHub's.
const (
	perPage  = 30
	mostPage = 100
)

// Runs says what a job may read of other runs of its repository.
type Runs struct {
	tgr.Redacted

	// API is the address of GitHub's REST API for the repository: "https://api.github.com". "": no step is told of
	// another one.
	API string
	// Token is the job's GITHUB_TOKEN, and Reads says that it may read actions. Of any other token GitHub is asked.
	Token string
	Reads bool
	// Own says that the job's code is a stranger's: it reads what such code has left for the same ref, and nothing else. What
	// it leaves, caches too, is apart from what trusted jobs have left, also where the event does not tell: Dependabot's.
	Own bool
}

// EnvFor is what an action is told beyond Env because of its inputs, whose names are in lower case: that GitHub's API
// is here, if it asks for a run of ours. address is that of Env.
func (x *Session) EnvFor(ctx context.Context, address string, inputs map[string]string) (map[string]string, error) {
	if x.job.Runs.API == "" {
		return nil, nil
	}
	for _, name := range []string{"run-id", "run_id", "runid"} {
		run, err := strconv.ParseInt(inputs[name], 10, 64)
		if err != nil {
			continue
		}
		b, err := one(ctx, x.s.meta.r, "WHERE kind = 'artifact' AND state = 'done' AND run = ? AND repo = ?", run, x.job.repo())
		if err != nil {
			return nil, err
		}
		if b != nil {
			return map[string]string{"GITHUB_API_URL": "http://" + address + apiPath}, nil
		}
	}
	return nil, nil
}

// restRoutes adds the part of the API that is here.
func (x *Session) restRoutes(mux *http.ServeMux) {
	const repo = apiPath + "/repos/{owner}/{repo}/actions/"
	mux.HandleFunc("GET "+repo+"runs/{run}/artifacts", x.rest(x.restList))
	mux.HandleFunc("GET "+repo+"artifacts/{id}", x.rest(x.restGet))
	mux.HandleFunc("GET "+repo+"artifacts/{id}/zip", x.rest(x.restDownload))
	mux.HandleFunc(apiPath+"/", func(w http.ResponseWriter, r *http.Request) { x.toGitHub(w, r) })
}

// errElsewhere says that something is not ours: GitHub knows of it, or nobody.
var errElsewhere = errors.New("it is not ours")

// rest makes a handler of one that answers for the job's own repository, and for tokens that may read its actions.
func (x *Session) rest(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := errElsewhere
		if strings.EqualFold(r.PathValue("owner")+"/"+r.PathValue("repo"), x.job.Run.Event.Repo.FullName) {
			if err = x.mayReadActions(r); err == nil {
				err = h(w, r)
			}
		}
		switch {
		case errors.Is(err, errElsewhere):
			x.toGitHub(w, r)
		case err != nil:
			x.log(r, err)
			fail(w, err)
		}
	}
}

// toGitHub sends a request on to where its answer is. Clients do not take their token along to another host.
func (x *Session) toGitHub(w http.ResponseWriter, r *http.Request) {
	if x.job.Runs.API == "" {
		fail(w, tgr.Errorf("results.api", tgr.NotFound, "there is no %s %s", r.Method, clip(r.URL.Path, 100)))
		return
	}
	to := x.job.Runs.API + strings.TrimPrefix(r.URL.EscapedPath(), apiPath)
	if r.URL.RawQuery != "" {
		to += "?" + r.URL.RawQuery
	}
	w.Header().Set("Location", to)
	w.WriteHeader(http.StatusTemporaryRedirect)
}

// mayReadActions checks the token of a request.
func (x *Session) mayReadActions(r *http.Request) error {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if (!strings.EqualFold(kind, "Bearer") && !strings.EqualFold(kind, "token")) || token == "" || len(token) > 8<<10 {
		return tgr.Errorf("results.api", tgr.Unauthorized, "the request has no token")
	}
	if own := x.job.Runs.Token; own != "" && hmac.Equal([]byte(own), []byte(token)) {
		if !x.job.Runs.Reads {
			return &deniedError{"Resource not accessible by integration: the job's permissions lack actions: read"}
		}
		return nil
	}
	return x.vouched(r.Context(), token)
}

// Bounds of asking GitHub about tokens.
const (
	vouchWithin = 15 * time.Second
	vouchTokens = 8 // different ones that a job may ask about
)

// vouched asks GitHub whether a token that is not the job's may read the repository's actions. Its answer counts while
// the job runs.
func (x *Session) vouched(ctx context.Context, token string) error {
	sum := sha256.Sum256([]byte(token))
	x.vouching.Lock()
	defer x.vouching.Unlock()
	err, known := x.vouches[sum]
	switch {
	case known:
		return err
	case x.job.Runs.API == "":
		return tgr.Errorf("results.api", tgr.Unauthorized, "the token is not the job's")
	case len(x.vouches) >= vouchTokens:
		return tgr.Errorf("results.api", tgr.Unauthorized, "the job has shown more than %d tokens", vouchTokens)
	}
	err = x.askGitHub(ctx, token)
	if code := tgr.CodeOf(err); err == nil || code == tgr.Unauthorized {
		if x.vouches == nil {
			x.vouches = map[[sha256.Size]byte]error{}
		}
		x.vouches[sum] = err
	}
	return err
}

func (x *Session) askGitHub(ctx context.Context, token string) error {
	ctx, cancel := context.WithTimeout(ctx, vouchWithin)
	defer cancel()
	owner, name, _ := strings.Cut(x.job.Run.Event.Repo.FullName, "/")
	at := fmt.Sprintf("%s/repos/%s/%s/actions/artifacts?per_page=1", x.job.Runs.API, url.PathEscape(owner), url.PathEscape(name))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/vnd.github+json")
	// A redirect is no answer, and the token goes nowhere else.
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return tgr.Errorf("results.api", tgr.Unavailable, "ask GitHub what a token may read: %w", err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK:
		return nil
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return tgr.Errorf("results.api", tgr.Unavailable, "GitHub does not say what a token may read: %s", resp.Status)
	}
	return tgr.Errorf("results.api", tgr.Unauthorized, "GitHub does not let the token read the actions of %s: %s", x.job.Run.Event.Repo.FullName, resp.Status)
}

// readable is the clause of the artifacts of the repository that the job may read, and its arguments.
func (x *Session) readable() (string, []any) {
	clause, args := "kind = 'artifact' AND state = 'done' AND repo = ? AND expires > ?", []any{x.job.repo(), x.s.cfg.Now().UnixMicro()}
	if x.job.Runs.Own {
		clause, args = clause+" AND trusted = 0 AND scope = ?", append(args, x.job.Run.Event.Ref)
	}
	return clause, args
}

// restArtifact is an artifact in the API.
type restArtifact struct {
	ID       int64   `json:"id"`
	Name     string  `json:"name"`
	Size     int64   `json:"size_in_bytes"`
	URL      string  `json:"url"`
	Download string  `json:"archive_download_url"`
	Expired  bool    `json:"expired"`
	Digest   string  `json:"digest"`
	Created  string  `json:"created_at"`
	Updated  string  `json:"updated_at"`
	Expires  string  `json:"expires_at"`
	Run      restRun `json:"workflow_run"`
}

type restRun struct {
	ID int64 `json:"id"`
}

func (x *Session) restArtifact(r *http.Request, b *blob) restArtifact {
	at := fmt.Sprintf("http://%s%s/repos/%s/actions/artifacts/%d", r.Host, apiPath, x.job.Run.Event.Repo.FullName, b.id)
	created := b.created.Format(time.RFC3339)
	return restArtifact{ID: b.id, Name: b.name, Size: b.size, URL: at, Download: at + "/zip", Digest: b.digest, Created: created, Updated: created,
		Expires: b.ends.Format(time.RFC3339), Run: restRun{b.run}}
}

// restList lists the artifacts of a run, of each name that of the latest attempt, the newest first.
func (x *Session) restList(w http.ResponseWriter, r *http.Request) error {
	run, err := strconv.ParseInt(r.PathValue("run"), 10, 64)
	if err != nil {
		return errElsewhere
	}
	b, err := one(r.Context(), x.s.meta.r, "WHERE kind = 'artifact' AND state = 'done' AND repo = ? AND run = ?", x.job.repo(), run)
	if err != nil {
		return err
	}
	if b == nil && run != int64(x.job.Run.ID) {
		return errElsewhere
	}
	q := r.URL.Query()
	clause, args := x.readable()
	clause += ` AND run = ? AND attempt = (SELECT max(attempt) FROM blobs WHERE kind = 'artifact' AND state = 'done' AND run = b.run AND name = b.name)`
	args = append(args, run)
	if name := artifactName(q.Get("name")); name != "" {
		clause, args = clause+" AND name = ?", append(args, name)
	}
	list, err := find(r.Context(), x.s.meta.r, "AS b WHERE "+clause+" ORDER BY id DESC", args...)
	if err != nil {
		return err
	}
	page, size := atLeast1(q.Get("page"), 1), min(atLeast1(q.Get("per_page"), perPage), mostPage)
	from := min((page-1)*size, len(list))
	to := min(from+size, len(list))
	artifacts := []restArtifact{}
	for i := range list[from:to] {
		artifacts = append(artifacts, x.restArtifact(r, &list[from+i]))
	}
	if to < len(list) {
		q.Set("page", strconv.Itoa(page+1))
		w.Header().Set("Link", fmt.Sprintf(`<http://%s%s?%s>; rel="next"`, r.Host, r.URL.EscapedPath(), q.Encode()))
	}
	return answer(w, http.StatusOK, map[string]any{"total_count": len(list), "artifacts": artifacts})
}

// atLeast1 reads a small number of a query.
func atLeast1(text string, otherwise int) int {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return otherwise
	}
	return int(n)
}

// restFind returns the artifact of a request. One that is there, and that the job may not read, is not found.
func (x *Session) restFind(r *http.Request) (*blob, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return nil, errElsewhere
	}
	clause, args := x.readable()
	b, err := one(r.Context(), x.s.meta.r, "WHERE "+clause+" AND id = ?", append(args, id)...)
	if err != nil || b != nil {
		return b, err
	}
	if b, err = one(r.Context(), x.s.meta.r, "WHERE kind = 'artifact' AND state = 'done' AND repo = ? AND id = ?", x.job.repo(), id); err != nil {
		return nil, err
	}
	if b == nil {
		return nil, errElsewhere
	}
	return nil, tgr.Errorf("results.api", tgr.NotFound, "Not Found: artifact %d has expired, or is not for this job to read", id)
}

func (x *Session) restGet(w http.ResponseWriter, r *http.Request) error {
	b, err := x.restFind(r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, x.restArtifact(r, b))
}

// restDownload answers where the bytes are, which is the same for artifacts that are no zip files.
func (x *Session) restDownload(w http.ResponseWriter, r *http.Request) error {
	b, err := x.restFind(r)
	if err != nil {
		return err
	}
	w.Header().Set("Location", x.address(r, b.id, toRead))
	w.WriteHeader(http.StatusFound)
	return nil
}
