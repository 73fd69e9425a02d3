package github

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-github/v88/github"
	"github.com/terraphim/tgr"
)

// maxAnnotations is how many annotations GitHub takes in one request.
const maxAnnotations = 50

// Reporter delivers reports to GitHub. It is safe for concurrent use, but reports of one repository should come one
// after the other, as GitHub asks for; Pump does that.
type Reporter struct {
	client *Client
	log    *slog.Logger

	mute sync.Once // says once that there are no credentials

	mu        sync.Mutex
	noChecks  bool            // the token may not make check runs: statuses have to do
	uncertain map[string]bool // external ids of check runs whose creation was not confirmed
}

// NewReporter makes a Reporter; log may be nil.
func NewReporter(client *Client, log *slog.Logger) *Reporter {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Reporter{client: client, log: log, uncertain: make(map[string]bool)}
}

// Deliver brings one report to GitHub. kind says what body is; remoteID is what the last delivery of the same key
// returned, "" before the first, and newRemoteID what the next one is to be given, also if there is an error.
//
// The error is a *tgr.Error. Unavailable and Limit mean that trying again will help, not before retryAfter (0: as the
// caller likes); any other code is final. Without credentials Deliver does nothing, successfully, and says so once.
func (r *Reporter) Deliver(ctx context.Context, kind string, body []byte, remoteID string) (newRemoteID string, retryAfter time.Duration, err error) {
	if !r.client.CanReport() {
		r.mute.Do(func() {
			r.log.Warn("results are not reported to GitHub: there is neither GITHUB_TOKEN nor a GitHub App")
		})
		return remoteID, 0, nil
	}
	repo, what := "", ""
	switch kind {
	case KindStatus:
		var s StatusReport
		if err = decodeReport(body, &s); err == nil {
			repo, what = s.Repo, fmt.Sprintf("status %q of %s", s.Context, s.SHA)
			err = r.status(ctx, s)
		}
	case KindCheck:
		var c CheckReport
		if err = decodeReport(body, &c); err == nil {
			repo, what = c.Repo, fmt.Sprintf("check run %q of %s", c.Name, c.SHA)
			remoteID, err = r.check(ctx, c, remoteID)
		}
	case KindComment:
		var c CommentReport
		if err = decodeReport(body, &c); err == nil {
			repo, what = c.Repo, fmt.Sprintf("comment of pull request %d", c.Number)
			remoteID, err = r.comment(ctx, c, remoteID)
		}
	default:
		err = tgr.Errorf("report", tgr.Invalid, "%q is not a kind of report", clip(kind, 50))
	}
	if err == nil {
		return remoteID, 0, nil
	}
	if code := statusOf(err); code == http.StatusNotFound || code == http.StatusUnauthorized {
		r.client.forget(repo)
	}
	code, wait := classify(err, time.Now())
	return remoteID, wait, tgr.Errorf("report."+kind, code, "%s in %s: %w", what, repo, err)
}

func decodeReport(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return tgr.Errorf("report", tgr.Invalid, "the report is malformed: %v", err)
	}
	return nil
}

func (r *Reporter) status(ctx context.Context, s StatusReport) error {
	api, err := r.client.forRepo(ctx, s.Repo)
	if err != nil {
		return err
	}
	owner, name, _ := strings.Cut(s.Repo, "/")
	_, _, err = api.Repositories.CreateStatus(ctx, owner, name, s.SHA, github.RepoStatus{
		State: &s.State, Context: &s.Context, Description: ptr(runes(s.Description, 140)), TargetURL: ptr(s.TargetURL),
	})
	return err
}

// ptr returns nil for the zero value: the API leaves such a field as it was.
func ptr[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

func stamp(t time.Time) *github.Timestamp {
	if t.IsZero() {
		return nil
	}
	return &github.Timestamp{Time: t}
}

// check makes a check run, or updates it. The remote id is that of the check run, and how many annotations it has:
// GitHub adds those of each request to those before.
func (r *Reporter) check(ctx context.Context, c CheckReport, remoteID string) (string, error) {
	r.mu.Lock()
	refused, unsure := r.noChecks, r.uncertain[c.ExternalID]
	r.mu.Unlock()
	if refused {
		return remoteID, nil
	}
	api, err := r.client.forRepo(ctx, c.Repo)
	if err != nil {
		return remoteID, err
	}
	owner, name, _ := strings.Cut(c.Repo, "/")
	k := &checkRun{api: api, owner: owner, name: name, c: c}
	k.parseID(remoteID)
	if k.id == 0 && unsure {
		if err := k.find(ctx); err != nil {
			return remoteID, err
		}
	}
	if k.id != 0 {
		err = k.update(ctx)
	}
	if k.id == 0 || statusOf(err) == http.StatusNotFound { // not found: deleted, or made by another App before ours
		k.id, k.sent = 0, 0
		err = k.create(ctx)
	}
	for err == nil && k.sent < len(c.Annotations) {
		err = k.update(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.id == 0 && err != nil && statusOf(err) == 0 {
		r.uncertain[c.ExternalID] = true // it may have been made, although we have no answer
	} else {
		delete(r.uncertain, c.ExternalID)
	}
	if isCheckRefusal(err) {
		r.noChecks = true
		r.log.Warn("check runs are only made by GitHub Apps: results are reported as commit statuses alone", "error", err)
		return remoteID, nil
	}
	return k.formatID(), err
}

// isCheckRefusal tells GitHub's answer to a token that is not an App's.
func isCheckRefusal(err error) bool {
	var e *github.ErrorResponse
	return errors.As(err, &e) && e.Response != nil && e.Response.StatusCode == http.StatusForbidden &&
		(strings.Contains(e.Message, "GitHub App") || strings.Contains(e.Message, "not accessible by personal access token"))
}

// checkRun is a check run that is being delivered.
type checkRun struct {
	api         *github.Client
	owner, name string
	c           CheckReport
	id          int64 // 0: not made
	sent        int   // annotations that it has
}

func (k *checkRun) parseID(s string) {
	id, sent, _ := strings.Cut(s, ":")
	k.id, _ = strconv.ParseInt(id, 10, 64)
	k.sent, _ = strconv.Atoi(sent)
}

func (k *checkRun) formatID() string {
	switch {
	case k.id == 0:
		return ""
	case k.sent == 0:
		return strconv.FormatInt(k.id, 10)
	}
	return fmt.Sprintf("%d:%d", k.id, k.sent)
}

// output is the text, and the next annotations.
func (k *checkRun) output() (*github.CheckRunOutput, int) {
	from := min(k.sent, len(k.c.Annotations))
	batch := k.c.Annotations[from:min(from+maxAnnotations, len(k.c.Annotations))]
	out := &github.CheckRunOutput{Title: ptr(k.c.Title), Summary: github.Ptr(clip(k.c.Summary, 65_000)), Text: ptr(clip(k.c.Text, 65_000))}
	for _, a := range batch {
		out.Annotations = append(out.Annotations, annotationOf(a))
	}
	return out, len(batch)
}

// annotationOf fits an annotation to what GitHub takes: a path and lines always, columns only within one line.
func annotationOf(a tgr.Annotation) *github.CheckRunAnnotation {
	level := "failure"
	switch a.Level {
	case "warning", "notice":
		level = a.Level
	}
	path := strings.TrimPrefix(plain(a.File), "/")
	if path == "" {
		path = ".github"
	}
	line := max(a.Line, 1)
	end := max(a.EndLine, line)
	message := clip(a.Message, 60_000)
	if strings.TrimSpace(message) == "" {
		message = "(no message)"
	}
	out := &github.CheckRunAnnotation{
		Path: &path, StartLine: &line, EndLine: &end, AnnotationLevel: &level, Message: &message, Title: ptr(runes(plain(a.Title), 255)),
	}
	if line == end && a.Column > 0 {
		out.StartColumn, out.EndColumn = ptr(a.Column), ptr(max(a.EndColumn, a.Column))
	}
	return out
}

func (k *checkRun) create(ctx context.Context) error {
	out, n := k.output()
	made, _, err := k.api.Checks.CreateCheckRun(ctx, k.owner, k.name, github.CreateCheckRunOptions{
		Name: k.c.Name, HeadSHA: k.c.SHA, DetailsURL: ptr(k.c.DetailsURL), ExternalID: ptr(k.c.ExternalID), Status: ptr(k.c.Status),
		Conclusion: ptr(k.c.Conclusion), StartedAt: stamp(k.c.Started), CompletedAt: stamp(k.c.Completed), Output: out,
	})
	if err == nil {
		k.id, k.sent = made.GetID(), n
	}
	return err
}

func (k *checkRun) update(ctx context.Context) error {
	out, n := k.output()
	_, _, err := k.api.Checks.UpdateCheckRun(ctx, k.owner, k.name, k.id, github.UpdateCheckRunOptions{
		Name: k.c.Name, DetailsURL: ptr(k.c.DetailsURL), ExternalID: ptr(k.c.ExternalID), Status: ptr(k.c.Status),
		Conclusion: ptr(k.c.Conclusion), CompletedAt: stamp(k.c.Completed), Output: out,
	})
	if err == nil {
		k.sent += n
	}
	return err
}

// find looks for a check run of ours by its external id.
func (k *checkRun) find(ctx context.Context) error {
	runs, _, err := k.api.Checks.ListCheckRunsForRef(ctx, k.owner, k.name, k.c.SHA, &github.ListCheckRunsOptions{
		CheckName: &k.c.Name, ListOptions: github.ListOptions{PerPage: 100},
	})
	if err != nil {
		return err
	}
	for _, run := range runs.CheckRuns {
		if run.GetExternalID() == k.c.ExternalID && run.GetName() == k.c.Name {
			k.id, k.sent = run.GetID(), run.GetOutput().GetAnnotationsCount()
		}
	}
	return nil
}

// comment puts one workflow's part into the pull request's comment. The comment is known by its id, or is found among
// those that are ours by its marker; somebody else's comment with the marker is left alone.
func (r *Reporter) comment(ctx context.Context, c CommentReport, remoteID string) (string, error) {
	api, err := r.client.forRepo(ctx, c.Repo)
	if err != nil {
		return remoteID, err
	}
	owner, name, _ := strings.Cut(c.Repo, "/")
	found, err := r.findComment(ctx, api, c, remoteID)
	if err != nil {
		return remoteID, err
	}
	body, changed := mergeComment(found.GetBody(), c)
	switch {
	case found == nil:
		found, _, err = api.Issues.CreateComment(ctx, owner, name, c.Number, &github.IssueComment{Body: &body})
	case changed:
		found, _, err = api.Issues.EditComment(ctx, owner, name, found.GetID(), &github.IssueComment{Body: &body})
	}
	if err != nil {
		return remoteID, err
	}
	return strconv.FormatInt(found.GetID(), 10), nil
}

// findComment returns nil where there is no comment yet.
func (r *Reporter) findComment(ctx context.Context, api *github.Client, c CommentReport, remoteID string) (*github.IssueComment, error) {
	owner, name, _ := strings.Cut(c.Repo, "/")
	if id, err := strconv.ParseInt(remoteID, 10, 64); err == nil {
		found, _, err := api.Issues.GetComment(ctx, owner, name, id)
		if err == nil {
			return found, nil
		}
		if statusOf(err) != http.StatusNotFound {
			return nil, err
		}
		// Somebody deleted it; another workflow may have made the next one.
	}
	login, err := r.client.login(ctx, c.Repo)
	if err != nil {
		return nil, fmt.Errorf("who are we: %w", err)
	}
	opts := &github.IssueListCommentsOptions{ListOptions: github.ListOptions{PerPage: 100}}
	for range 20 { // 2,000 comments: then a new one is made
		page, resp, err := api.Issues.ListComments(ctx, owner, name, c.Number, opts)
		if err != nil {
			return nil, err
		}
		for _, found := range page {
			if strings.HasPrefix(found.GetBody(), commentMarker) && strings.EqualFold(found.GetUser().GetLogin(), login) {
				return found, nil
			}
		}
		if resp.NextPage == 0 {
			break
		}
		opts.Page = resp.NextPage
	}
	return nil, nil
}

// statusOf returns the HTTP status of an API error, 0 if there was no answer.
func statusOf(err error) int {
	resp := responseOf(err)
	if resp == nil {
		return 0
	}
	return resp.StatusCode
}

func responseOf(err error) *http.Response {
	var (
		plain *github.ErrorResponse
		limit *github.RateLimitError
		abuse *github.AbuseRateLimitError
	)
	switch {
	case errors.As(err, &limit):
		return limit.Response
	case errors.As(err, &abuse):
		return abuse.Response
	case errors.As(err, &plain):
		return plain.Response
	}
	return nil
}

// classify says whether to try again, and when: it obeys Retry-After, the reset of the primary rate limit, and the
// rule for secondary limits that name no time (a minute).
func classify(err error, now time.Time) (tgr.Code, time.Duration) {
	var own *tgr.Error
	if errors.As(err, &own) {
		return own.Code, 0
	}
	resp := responseOf(err)
	if resp == nil {
		return tgr.Unavailable, 0 // no answer: the network, or a time-out
	}
	wait := time.Duration(0)
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		wait = time.Duration(min(s, 24*3600)) * time.Second
	}
	var limit *github.RateLimitError
	var abuse *github.AbuseRateLimitError
	limited := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusForbidden && wait > 0
	switch {
	case errors.As(err, &limit):
		limited, wait = true, max(wait, limit.Rate.Reset.Sub(now)+time.Second)
	case errors.As(err, &abuse):
		limited = true
		if abuse.RetryAfter != nil {
			wait = max(wait, *abuse.RetryAfter)
		}
	}
	switch code := resp.StatusCode; {
	case limited:
		if wait <= 0 {
			wait = time.Minute
		}
		return tgr.Limit, min(wait, 24*time.Hour)
	case code >= 500 || code == http.StatusRequestTimeout || code == http.StatusConflict || code == http.StatusUnauthorized:
		return tgr.Unavailable, wait // 401: until somebody gives a new token, which the last state then waits for
	case code == http.StatusForbidden:
		return tgr.Unauthorized, 0
	case code == http.StatusNotFound:
		return tgr.NotFound, 0
	}
	return tgr.Invalid, 0
}
