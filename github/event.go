package github

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
)

var (
	namePattern     = lazily(`^[a-z][a-z_]{0,63}$`)
	repoPattern     = lazily(`^[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}$`)
	shaPattern      = lazily(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	deliveryPattern = lazily(`^[A-Za-z0-9_-]{1,64}$`)
)

// lazily compiles an expression when it is first needed: most commands of the program never are where these are.
func lazily(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// wanted are the fields of a payload that Decode reads; everything else is only checked.
var wanted = []string{
	"action", "ref", "ref_type", "before", "after", "deleted", "number", "branch",
	"repository.id", "repository.full_name", "repository.clone_url", "repository.default_branch",
	"repository.private", "repository.fork",
	"sender.login", "sender.id",
	"issue.number", "discussion.number",
	"pull_request.number", "pull_request.merged", "pull_request.merge_commit_sha",
	"pull_request.head.sha", "pull_request.head.ref", "pull_request.head.repo", "pull_request.head.repo.id",
	"pull_request.base.sha", "pull_request.base.ref", "pull_request.base.repo.id",
	"merge_group.head_sha", "merge_group.head_ref", "merge_group.base_sha", "merge_group.base_ref",
	"deployment.sha", "deployment.ref", "release.tag_name",
}

// derivers say what github.ref and github.sha are, for every event that can start a workflow. The rules are those of
// https://docs.github.com/actions/reference/workflows-and-actions/events-that-trigger-workflows.
// An empty SHA is the tip of Ref: the payload does not tell it, and the source resolves it.
var derivers = map[string]func(*decoder){
	"push":                        (*decoder).push,
	"pull_request":                (*decoder).pullRequest,
	"pull_request_review":         (*decoder).pullRequest,
	"pull_request_review_comment": (*decoder).pullRequest,
	"pull_request_target":         (*decoder).pullRequestTarget,
	"merge_group":                 (*decoder).mergeGroup,
	"create":                      (*decoder).create,
	"deployment":                  (*decoder).deployment,
	"deployment_status":           (*decoder).deployment,
	"release":                     (*decoder).release,
	"workflow_dispatch":           (*decoder).workflowDispatch,
	"repository_dispatch":         (*decoder).defaultBranch,
	"schedule":                    (*decoder).defaultBranch,
	"branch_protection_rule":      (*decoder).defaultBranch,
	"check_run":                   (*decoder).defaultBranch,
	"check_suite":                 (*decoder).defaultBranch,
	"delete":                      (*decoder).defaultBranch,
	"discussion":                  (*decoder).defaultBranch,
	"discussion_comment":          (*decoder).defaultBranch,
	"fork":                        (*decoder).defaultBranch,
	"gollum":                      (*decoder).defaultBranch,
	"issue_comment":               (*decoder).defaultBranch,
	"issues":                      (*decoder).defaultBranch,
	"label":                       (*decoder).defaultBranch,
	"milestone":                   (*decoder).defaultBranch,
	"page_build":                  (*decoder).defaultBranch,
	"public":                      (*decoder).defaultBranch,
	"registry_package":            (*decoder).defaultBranch,
	"status":                      (*decoder).defaultBranch,
	"watch":                       (*decoder).defaultBranch,
	"workflow_run":                (*decoder).defaultBranch,
}

// Triggers reports whether an event of that name can start a workflow.
func Triggers(event string) bool { return derivers[event] != nil }

// Decode turns a webhook's payload into an Event. event is the X-GitHub-Event header: it is never guessed.
//
// An event that can start a workflow gets the Ref and SHA that GitHub documents for it; where the payload does not
// tell the commit, SHA is empty and means the tip of Ref. Any other event (ping, installation, star, …) is decoded
// as far as its payload goes, and may have no repository. A push that deletes its ref has Deleted set and no SHA.
//
// GitHub sends one pull_request webhook for the pull_request and pull_request_target triggers; decoded under the second
// name it is the second event.
//
// The error is a *tgr.Error with code Invalid and names the place. body is kept as the Event's Payload.
func Decode(event string, body []byte) (tgr.Event, error) {
	if !namePattern().MatchString(event) {
		return tgr.Event{}, tgr.Errorf("webhook.decode", tgr.Invalid, "%q is not the name of an event", clip(event, 80))
	}
	f, err := parseFields(body, wanted)
	if err != nil {
		return tgr.Event{}, tgr.Errorf("webhook.decode", tgr.Invalid, "the payload is not valid JSON: %v", err)
	}
	d := &decoder{f: f}
	d.ev = tgr.Event{
		Name:    event,
		Action:  d.str("action"),
		Actor:   d.str("sender.login"),
		ActorID: d.num("sender.id"),
		Number:  int(d.num("number")),
		Payload: body,
	}
	derive := derivers[event]
	d.repo(derive != nil)
	for _, path := range []string{"pull_request.number", "issue.number", "discussion.number"} {
		if d.ev.Number == 0 {
			d.ev.Number = int(d.num(path))
		}
	}
	if derive != nil {
		derive(d)
		d.check()
	}
	if d.err != nil {
		return tgr.Event{}, tgr.Errorf("webhook.decode", tgr.Invalid, "the payload of %s is malformed: %v", event, d.err)
	}
	if d.ev.HeadSHA == "" {
		d.ev.HeadSHA = d.ev.SHA
	}
	return d.ev, nil
}

// decoder collects an event from the fields of its payload and keeps the first error.
type decoder struct {
	f   fields
	ev  tgr.Event
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

// get returns the value at path if it is of kind k; an absent or null one is no error.
func (d *decoder) get(path string, k kind, what string) string {
	v, ok := d.f[path]
	if !ok || v.kind == isNull {
		return ""
	}
	if v.kind != k {
		d.fail("%s is not %s", path, what)
		return ""
	}
	return v.text
}

// str returns a short string: nothing that we read is long or has control characters.
func (d *decoder) str(path string) string {
	s := d.get(path, isString, "a string")
	if len(s) > 4096 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		d.fail("%s is too long or has control characters", path)
		return ""
	}
	return s
}

func (d *decoder) num(path string) int64 {
	s := d.get(path, isNumber, "a number")
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		d.fail("%s is not a whole number from 0 to 2^63-1", path)
		return 0
	}
	return n
}

func (d *decoder) is(path string) bool { return d.get(path, isBool, "true or false") == "true" }

// repo reads the repository, which every event that can start a workflow must have.
func (d *decoder) repo(required bool) {
	r := tgr.Repo{
		ID:            d.num("repository.id"),
		FullName:      d.str("repository.full_name"),
		CloneURL:      d.str("repository.clone_url"),
		DefaultBranch: d.str("repository.default_branch"),
		Private:       d.is("repository.private"),
		Fork:          d.is("repository.fork"),
	}
	d.ev.Repo = r
	if r == (tgr.Repo{}) && !required {
		return
	}
	switch {
	case r.ID == 0:
		d.fail("repository.id is missing")
	case !validRepo(r.FullName):
		d.fail("repository.full_name is not owner/name")
	case required && !validRef("refs/heads/"+r.DefaultBranch):
		d.fail("repository.default_branch is not the name of a branch")
	}
	if r.CloneURL != "" {
		if u, err := url.Parse(r.CloneURL); err != nil || !slices.Contains([]string{"https", "http", "file"}, u.Scheme) {
			d.fail("repository.clone_url is not a URL of https, http or file")
		}
	}
}

// check refuses what a hostile payload could make of a ref or a commit: they become arguments and file names.
func (d *decoder) check() {
	for _, r := range []struct{ path, ref string }{
		{"the ref", d.ev.Ref}, {"the head ref", branchRef(d.ev.HeadRef)}, {"the base ref", branchRef(d.ev.BaseRef)},
	} {
		if r.ref != "" && !validRef(r.ref) {
			d.fail("%s is not valid: %q", r.path, clip(r.ref, 100))
		}
	}
	for _, s := range []struct{ path, sha string }{
		{"the commit", d.ev.SHA}, {"the head commit", d.ev.HeadSHA}, {"the base commit", d.ev.BaseSHA},
	} {
		if s.sha != "" && !shaPattern().MatchString(s.sha) {
			d.fail("%s is not a SHA: %q", s.path, clip(s.sha, 100))
		}
	}
}

func (d *decoder) push() {
	d.ev.Ref = d.str("ref")
	d.ev.SHA = d.str("after")
	d.ev.BaseSHA = d.str("before")
	if d.ev.Deleted = d.is("deleted") || zeroSHA(d.ev.SHA); d.ev.Deleted {
		d.ev.SHA = ""
	}
	if !strings.HasPrefix(d.ev.Ref, "refs/") || d.ev.SHA == "" && !d.ev.Deleted {
		d.fail("a push needs ref and after")
	}
}

func (d *decoder) pullRequest() {
	ev := &d.ev
	ev.HeadSHA, ev.HeadRef = d.str("pull_request.head.sha"), d.str("pull_request.head.ref")
	ev.BaseSHA, ev.BaseRef = d.str("pull_request.base.sha"), d.str("pull_request.base.ref")
	if ev.Number <= 0 || ev.HeadSHA == "" || ev.BaseRef == "" {
		d.fail("a pull request needs number, head.sha and base.ref")
	}
	// A head without a repository is a fork that was deleted.
	head := d.num("pull_request.head.repo.id")
	ev.Forked = head == 0 || head != ev.Repo.ID
	ev.SHA = d.str("pull_request.merge_commit_sha")
	if ev.SHA == "" {
		ev.SHA = ev.HeadSHA // GitHub has not tried the merge, or it has conflicts
	}
	ev.Ref = "refs/pull/" + strconv.Itoa(ev.Number) + "/merge"
	if d.is("pull_request.merged") {
		ev.Ref = branchRef(ev.BaseRef)
	}
}

func (d *decoder) pullRequestTarget() {
	d.pullRequest()
	d.defaultBranch() // whatever the base is: https://gh.io/securely-using-pull_request_target
	d.ev.SHA = ""
}

func (d *decoder) mergeGroup() {
	d.ev.Ref, d.ev.SHA = d.str("merge_group.head_ref"), d.str("merge_group.head_sha")
	d.ev.BaseSHA = d.str("merge_group.base_sha")
	d.ev.HeadRef = strings.TrimPrefix(d.ev.Ref, "refs/heads/")
	d.ev.BaseRef = strings.TrimPrefix(d.str("merge_group.base_ref"), "refs/heads/")
	if d.ev.Ref == "" || d.ev.SHA == "" {
		d.fail("a merge group needs head_ref and head_sha")
	}
}

func (d *decoder) create() {
	name := d.str("ref")
	switch d.str("ref_type") {
	case "tag":
		d.ev.Ref = "refs/tags/" + name
	case "branch":
		d.ev.Ref = branchRef(name)
	default: // "repository": nothing was pushed yet
		d.defaultBranch()
	}
}

func (d *decoder) deployment() {
	d.ev.SHA = d.str("deployment.sha")
	ref := d.str("deployment.ref")
	switch {
	case d.ev.SHA == "":
		d.fail("a deployment needs sha")
	case shaPattern().MatchString(ref): // made for a commit: github.ref is empty
	case strings.HasPrefix(ref, "refs/"):
		d.ev.Ref = ref
	default:
		d.ev.Ref = branchRef(ref)
	}
}

func (d *decoder) release() {
	if tag := d.str("release.tag_name"); tag != "" {
		d.ev.Ref = "refs/tags/" + tag
		return
	}
	d.fail("a release needs tag_name")
}

func (d *decoder) workflowDispatch() {
	if d.ev.Ref = d.str("ref"); !strings.HasPrefix(d.ev.Ref, "refs/") {
		d.ev.Ref = branchRef(d.ev.Ref)
	}
	if d.ev.Ref == "" {
		d.fail("a workflow_dispatch needs ref")
	}
}

func (d *decoder) defaultBranch() { d.ev.Ref = branchRef(d.ev.Repo.DefaultBranch) }

// branchRef returns refs/heads/name, and "" for no name.
func branchRef(name string) string {
	if name == "" {
		return ""
	}
	return "refs/heads/" + name
}

// zeroSHA reports whether sha stands for no commit: the before of a new branch, the after of a deleted one.
func zeroSHA(sha string) bool { return sha != "" && strings.Trim(sha, "0") == "" }

// validRepo reports whether name is owner/name, and can be a path: no part of it is "." or "..".
func validRepo(name string) bool {
	owner, repo, _ := strings.Cut(name, "/")
	return repoPattern().MatchString(name) && owner != "." && owner != ".." && repo != "." && repo != ".."
}

// validRef applies git's check-ref-format to a full name: what passes is no option, no revision and no path out.
func validRef(ref string) bool {
	if !strings.HasPrefix(ref, "refs/") || len(ref) > 1024 || strings.HasSuffix(ref, ".") || strings.HasSuffix(ref, "/") ||
		strings.Contains(ref, "..") || strings.Contains(ref, "@{") || strings.Contains(ref, "//") ||
		strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r) }) {
		return false
	}
	for part := range strings.SplitSeq(ref, "/") {
		if strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return strings.Count(ref, "/") >= 2
}
