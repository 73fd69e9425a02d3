package runner

import (
	"encoding/json"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/workflow"
)

// checkoutInputs are the inputs of actions/checkout, with their defaults.
func checkoutInputs() []workflow.Input {
	in := func(name, def string) workflow.Input {
		return workflow.Input{Name: name, Default: def, HasDefault: true}
	}
	return []workflow.Input{
		in("repository", "${{ github.repository }}"), in("ref", ""), in("token", "${{ github.token }}"),
		in("ssh-key", ""), in("ssh-known-hosts", ""), in("ssh-strict", "true"), in("ssh-user", "git"),
		in("persist-credentials", "true"), in("path", ""), in("clean", "true"), in("filter", ""),
		in("sparse-checkout", ""), in("sparse-checkout-cone-mode", "true"), in("fetch-depth", "1"),
		in("fetch-tags", "false"), in("show-progress", "true"), in("lfs", "false"), in("submodules", "false"),
		in("set-safe-directory", "true"), in("github-server-url", ""), in("allow-unsafe-pr-checkout", "false"),
	}
}

// checkout serves actions/checkout, any version, from the host's copy of the repository.
func (r *run) checkout(u *unit) error {
	u.action = &action{
		meta: &workflow.Action{File: "actions/checkout", Inputs: checkoutInputs()},
		dir:  path.Join(r.config.Dirs.Actions, "actions/checkout/native"), repo: "actions/checkout", ref: refOf(u.src.Uses),
	}
	inputs, err := r.inputs(u)
	if err != nil {
		return err
	}
	r.usesHeader(u, shownInputs(inputs))
	req, dir, clean, err := r.checkoutRequest(u, inputs)
	if err != nil {
		return err
	}
	if r.config.Checkout == nil {
		return workflowError(r.file(u.sc), u.src.Pos, "actions/checkout: there is no source of repositories here")
	}
	ctx, done := r.clock.cancellable(u.limit, u.survives)
	defer done()
	if ctx.Err() != nil {
		return interrupted(ctx)
	}
	r.log(u.rec, "Syncing repository: "+req.Repository)
	var res CheckoutResult
	r.unlocked(func() { res, err = r.config.Checkout.Checkout(ctx, req) })
	if err != nil {
		return r.sourceError(ctx, u, "actions/checkout: "+req.Repository, err)
	}
	defer closeQuietly(res.Tar)
	if clean && r.used {
		if err := r.empty(u, dir); err != nil {
			return err
		}
	}
	r.used = true
	watch := &watched{r: res.Tar}
	if err := r.config.Machine.Put(ctx, dir, watch); err != nil {
		if watch.err != nil && watch.err != io.EOF {
			return r.sourceError(ctx, u, "actions/checkout: "+req.Repository, watch.err)
		}
		return r.classify(ctx, "unpacking the checkout", err)
	}
	r.log(u.rec, fmt.Sprintf("HEAD is now at %s (%s)", res.SHA, res.Ref))
	u.outputs.set("ref", res.Ref)
	u.outputs.set("commit", res.SHA)
	return nil
}

func refOf(uses string) string {
	_, ref, _ := strings.Cut(uses, "@")
	return ref
}

// checkoutRequest reads the inputs.
func (r *run) checkoutRequest(u *unit, inputs []pair) (req CheckoutRequest, dir string, clean bool, err error) {
	get := func(name string) string {
		v, _ := lookup(inputs, name)
		return strings.TrimSpace(v)
	}
	bad := func(format string, args ...any) error {
		return workflowError(r.file(u.sc), u.src.Pos, "actions/checkout: "+format, args...)
	}
	flag := func(name string) bool {
		switch v := strings.ToLower(get(name)); v {
		case "true":
			return true
		case "false", "":
		default:
			if err == nil {
				err = bad("input %s: '%s' is neither true nor false", name, excerpt(v))
			}
		}
		return false
	}
	own, _ := r.static.github["repository"].(string)
	server, _ := r.static.github["server_url"].(string)
	req = CheckoutRequest{
		Repository: get("repository"), Ref: get("ref"), Token: get("token"), Filter: get("filter"),
		FetchTags: flag("fetch-tags"), PersistCredentials: flag("persist-credentials"),
		SparseConeMode: flag("sparse-checkout-cone-mode"), ServerURL: strings.TrimSuffix(get("github-server-url"), "/"),
	}
	if req.ServerURL == "" {
		req.ServerURL = strings.TrimSuffix(server, "/")
	}
	clean = flag("clean")
	for line := range strings.Lines(get("sparse-checkout")) {
		if line = strings.TrimSpace(line); line != "" {
			req.SparseCheckout = append(req.SparseCheckout, line)
		}
	}
	switch v := strings.ToLower(get("submodules")); v {
	case "", "false":
	case "true", "recursive":
		req.Submodules = v
	default:
		return req, "", false, bad("input submodules: '%s' is neither true, false nor recursive", excerpt(v))
	}
	if flag("lfs") {
		return req, "", false, bad("input lfs: files kept by Git LFS cannot be fetched here")
	}
	if get("ssh-key") != "" {
		return req, "", false, bad("input ssh-key: repositories cannot be fetched by SSH here; use a token")
	}
	if err != nil {
		return req, "", false, err
	}
	if owner, name, ok := strings.Cut(req.Repository, "/"); !ok || owner == "" || name == "" || strings.Contains(name, "/") {
		return req, "", false, bad("input repository: '%s' is not {owner}/{repo}", excerpt(req.Repository))
	}
	if req.FetchDepth, err = strconv.Atoi(get("fetch-depth")); err != nil || req.FetchDepth < 0 {
		return req, "", false, bad("input fetch-depth: '%s' is not a number of commits", excerpt(get("fetch-depth")))
	}
	if !flag("allow-unsafe-pr-checkout") && err == nil && r.fromFork(req, own) {
		return req, "", false, bad("refusing to check out fork pull request code from a '%s' workflow, which has the secrets and the token "+
			"of this repository: set 'allow-unsafe-pr-checkout: true' if nothing of it is run (https://gh.io/securely-using-pull_request_target)", r.job.GitHub["event_name"])
	}
	if err != nil {
		return req, "", false, err
	}
	if strings.EqualFold(req.Repository, own) && req.Ref == "" {
		req.SHA, _ = r.static.github["sha"].(string)
	}
	dir = path.Join(r.config.Dirs.Workspace, get("path"))
	if path.IsAbs(get("path")) {
		dir = path.Clean(get("path"))
	}
	if dir != r.config.Dirs.Workspace && !strings.HasPrefix(dir, r.config.Dirs.Workspace+"/") {
		return req, "", false, bad("input path: '%s' is not under '%s'", excerpt(dir), r.config.Dirs.Workspace)
	}
	return req, dir, clean, nil
}

// pullRef is a pull request's side of its changes. GitHub serves those of forks, too.
var pullRef = regexp.MustCompile(`^(refs/)?(remotes/)?pull/[0-9]+/(head|merge)$`)

// fromFork reports whether a checkout gets what anybody has proposed, for a workflow that is trusted with more than that.
//
// https://github.blog/changelog/2026-06-18-safer-pull_request_target-defaults-for-github-actions-checkout/
func (r *run) fromFork(req CheckoutRequest, own string) bool {
	type repo struct {
		ID       int64  `json:"id"`
		FullName string `json:"full_name"`
	}
	var ev struct {
		Repository repo `json:"repository"`
		Pull       struct {
			Head struct {
				SHA  string `json:"sha"`
				Repo repo   `json:"repo"`
			} `json:"head"`
			Merge string `json:"merge_commit_sha"`
		} `json:"pull_request"`
		Run struct {
			Event string `json:"event"`
			Head  string `json:"head_sha"`
			Repo  repo   `json:"head_repository"`
		} `json:"workflow_run"`
	}
	if json.Unmarshal(r.job.Event, &ev) != nil {
		return false
	}
	head, commits := ev.Pull.Head.Repo, []string{ev.Pull.Head.SHA, ev.Pull.Merge}
	switch r.job.GitHub["event_name"] {
	case "pull_request_target":
	case "workflow_run":
		head, commits = ev.Run.Repo, []string{ev.Run.Head}
		if !strings.HasPrefix(ev.Run.Event, "pull_request") {
			return false
		}
	default:
		return false
	}
	if head.ID != 0 && head.ID == ev.Repository.ID {
		return false
	}
	if !strings.EqualFold(req.Repository, own) {
		return head.FullName == "" || strings.EqualFold(req.Repository, head.FullName)
	}
	return pullRef.MatchString(req.Ref) ||
		slices.ContainsFunc(commits, func(sha string) bool { return sha != "" && strings.EqualFold(sha, req.Ref) })
}

// empty deletes what earlier steps have left in a directory of the workspace.
func (r *run) empty(u *unit, dir string) error {
	ctx, done := r.clock.cancellable(u.limit, u.survives)
	defer done()
	if err := r.config.Machine.Put(ctx, dir, emptyTar()); err != nil { // it may not be there yet
		return r.classify(ctx, "emptying the directory of the checkout", err)
	}
	env, err := r.processEnv(u, onMachine{r}, true, nil)
	if err != nil {
		return err
	}
	r.log(u.rec, "Deleting the contents of '"+dir+"'")
	out := newOutput(u)
	exit, err := r.config.Machine.Exec(ctx, guest.Cmd{
		Args: []string{"find", dir, "-mindepth", "1", "-delete"}, Dir: "/", Env: env, Grace: r.config.Limits.Grace,
	}, out)
	r.unlocked(func() { _ = out.Close() })
	switch {
	case ctx.Err() != nil:
		return interrupted(ctx)
	case err != nil:
		return r.classify(ctx, "emptying the directory of the checkout", err)
	case !exit.Success():
		return userError("actions/checkout: '%s' cannot be emptied: %s", dir, strings.TrimSpace(exit.Message+" exit status "+strconv.Itoa(exit.Code)))
	}
	return nil
}
