package runner

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// action is an action whose metadata has been read.
type action struct {
	meta *workflow.Action
	dir  string // in the machine
	repo string // owner/name; "" of a local action
	ref  string
	bare bool // an image named by the step: it has no metadata
}

// file names the metadata's file in messages.
func (a *action) file() string { return a.meta.File }

// fetched is the repository of a remote action.
type fetched struct {
	sha   string
	dir   string
	files map[string][]byte // metadata files by path: action.yml, sub/action.yaml
}

// Bounds of the metadata files of one repository.
const (
	maxActionFiles = 2000
	maxActionBytes = 16 << 20
)

// target is where a `uses` points.
type target struct {
	repo, ref, path string // of a remote action
	local           string // directory below the workspace
	image           string // of docker://
}

// parseUses reads a `uses`.
func (r *run) parseUses(u *unit) (target, error) {
	uses := u.src.Uses
	bad := func(why string) (target, error) {
		return target{}, workflowError(r.file(u.sc), u.src.Pos, "uses: '%s' %s", excerpt(uses), why)
	}
	if image, ok := strings.CutPrefix(uses, "docker://"); ok {
		return target{image: image}, nil
	}
	if rest, ok := strings.CutPrefix(uses, "$/"); ok { // the repository that the file itself is in
		repo, ref := r.ownSource(u.sc)
		if repo == "" {
			return bad("needs the repository and commit of its own file, which are not known")
		}
		return target{repo: repo, ref: ref, path: rest}, nil
	}
	if uses == "." || strings.HasPrefix(uses, "./") || strings.HasPrefix(uses, "../") {
		dir := path.Join(r.config.Dirs.Workspace, uses)
		if dir != r.config.Dirs.Workspace && !strings.HasPrefix(dir, r.config.Dirs.Workspace+"/") {
			return bad("is outside the workspace")
		}
		return target{local: dir}, nil
	}
	name, ref, ok := strings.Cut(uses, "@")
	parts := strings.SplitN(name, "/", 3)
	if !ok || ref == "" || len(parts) < 2 || parts[0] == "" || parts[1] == "" {
		return bad("is not {owner}/{repo}[/path]@ref, ./path or docker://image")
	}
	t := target{repo: parts[0] + "/" + parts[1], ref: ref}
	if len(parts) == 3 {
		if slices.Contains(strings.Split(parts[2], "/"), "..") {
			return bad("leads out of its repository")
		}
		t.path = path.Clean("/" + parts[2])[1:]
	}
	for _, seg := range strings.Split(t.repo+"/"+t.ref, "/") {
		if seg == "" || seg == "." || seg == ".." || strings.ContainsAny(seg, "\\\x00\n") {
			return bad("is not {owner}/{repo}[/path]@ref")
		}
	}
	return t, nil
}

// ownSource is the repository and commit of the file that a scope's steps are written in.
func (r *run) ownSource(sc *scope) (repo, ref string) {
	if sc.action != nil && sc.action.repo != "" {
		return sc.action.repo, sc.action.ref
	}
	repo, _ = r.static.github["repository"].(string)
	file, ref := r.written()
	if parts := strings.SplitN(file, "/", 3); len(parts) == 3 {
		repo = parts[0] + "/" + parts[1]
	}
	if ref == "" {
		ref, _ = r.static.github["sha"].(string)
	}
	return repo, ref
}

// isCheckout reports whether a step uses actions/checkout, which is served from the host.
func isCheckout(uses string) bool {
	name, _, ok := strings.Cut(uses, "@")
	return ok && strings.EqualFold(name, "actions/checkout")
}

// fetchAll fetches the remote actions of steps, and those that their composite actions use, before the first step runs.
func (r *run) fetchAll(rec *record, units []*unit, depth int) error {
	if depth > r.config.Limits.Nesting {
		return workflowError(r.file(units[0].sc), workflow.Pos{}, "actions are nested more than %d deep", r.config.Limits.Nesting)
	}
	for _, u := range units {
		if u.src.Uses == "" || isCheckout(u.src.Uses) {
			continue
		}
		t, err := r.parseUses(u)
		if err != nil {
			return err
		}
		if t.repo == "" {
			continue // local actions come with the checkout
		}
		u.rec = rec
		if u.action, err = r.remoteAction(u, t); err != nil {
			return err
		}
		if u.action.meta.Runs.Using != "composite" {
			continue
		}
		if err := r.makeInner(u); err != nil {
			return err
		}
		if err := r.fetchAll(rec, u.inner, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// load reads the metadata of the action that a step uses.
func (r *run) load(u *unit) error {
	if u.action != nil {
		return nil
	}
	t, err := r.parseUses(u)
	if err != nil {
		return err
	}
	switch {
	case t.image != "":
		u.action = r.dockerStep(u, t.image)
	case t.repo != "":
		u.action, err = r.remoteAction(u, t)
	default:
		u.action, err = r.localAction(u, t.local)
	}
	return err
}

// localAction reads an action from the workspace.
func (r *run) localAction(u *unit, dir string) (*action, error) {
	for _, name := range []string{"action.yml", "action.yaml"} {
		src, ok, err := r.fetchFile(dir+"/"+name, r.config.Limits.ActionFile)
		if err != nil {
			if blameOf(err) == tgr.BlameOurs {
				return nil, err
			}
			return nil, workflowError(r.file(u.sc), u.src.Pos, "uses: %s: %v", excerpt(u.src.Uses), err)
		}
		if ok {
			file := strings.TrimPrefix(dir+"/"+name, r.config.Dirs.Workspace+"/")
			meta, err := r.parseAction(u, file, []byte(src))
			if err != nil {
				return nil, err
			}
			return &action{meta: meta, dir: dir}, nil
		}
	}
	return nil, workflowError(r.file(u.sc), u.src.Pos,
		"Can't find 'action.yml' or 'action.yaml' under '%s'. Did you forget to run actions/checkout before running your local action?", excerpt(dir))
}

// remoteAction reads an action from its repository, which is fetched once per job.
func (r *run) remoteAction(u *unit, t target) (*action, error) {
	key := strings.ToLower(t.repo) + "@" + t.ref
	f := r.remote[key]
	if f == nil {
		var err error
		if f, err = r.fetch(u, t); err != nil {
			return nil, err
		}
		r.remote[key] = f
	}
	for _, name := range []string{"action.yml", "action.yaml"} {
		if src, ok := f.files[path.Join(t.path, name)]; ok {
			meta, err := r.parseAction(u, t.repo+"/"+path.Join(t.path, name)+"@"+t.ref, src)
			if err != nil {
				return nil, err
			}
			return &action{meta: meta, dir: path.Join(f.dir, t.path), repo: t.repo, ref: t.ref}, nil
		}
	}
	return nil, workflowError(r.file(u.sc), u.src.Pos, "uses: '%s' has no action.yml or action.yaml", excerpt(u.src.Uses))
}

// fetch copies a repository from the source to the machine, and keeps the metadata files that pass by.
func (r *run) fetch(u *unit, t target) (*fetched, error) {
	if r.config.Actions == nil {
		return nil, workflowError(r.file(u.sc), u.src.Pos, "uses: '%s' cannot be fetched: there is no source of remote actions here", excerpt(u.src.Uses))
	}
	ctx, done := r.clock.cancellable(r.clock.hard, r.clock.cancelled())
	defer done()
	var sha string
	var src io.ReadCloser
	var err error
	r.unlocked(func() { sha, src, err = r.config.Actions.Action(ctx, t.repo, t.ref) })
	if err != nil {
		return nil, r.sourceError(ctx, u, "Unable to resolve action '"+t.repo+"@"+t.ref+"'", err)
	}
	defer closeQuietly(src)
	r.log(u.rec, fmt.Sprintf("Download action repository '%s@%s' (SHA:%s)", t.repo, t.ref, sha))
	f := &fetched{sha: sha, dir: path.Join(r.config.Dirs.Actions, t.repo, t.ref)}
	read, write := io.Pipe()
	var scanned error
	over := make(chan struct{})
	go func() {
		defer close(over)
		f.files, scanned = scanAction(read, r.config.Limits.ActionFile)
		_, _ = io.Copy(io.Discard, read) // the machine gets the rest
	}()
	err = r.config.Machine.Put(ctx, f.dir, io.TeeReader(src, write))
	write.Close()
	<-over
	switch {
	case err != nil:
		return nil, r.classify(ctx, "unpacking action '"+t.repo+"@"+t.ref+"'", err)
	case scanned != nil:
		return nil, workflowError(r.file(u.sc), u.src.Pos, "uses: '%s': %v", excerpt(u.src.Uses), scanned)
	}
	return f, nil
}

// sourceError says whose fault it is that a source on the host had nothing to give.
func (r *run) sourceError(ctx context.Context, u *unit, what string, err error) error {
	switch code := tgr.CodeOf(err); {
	case ctx.Err() != nil:
		return interrupted(ctx)
	case code == tgr.NotFound, code == tgr.Invalid, code == tgr.Unauthorized, code == tgr.Workflow:
		return workflowError(r.file(u.sc), u.src.Pos, "%s: %s", what, tgr.MessageOf(err))
	}
	e := &tgr.Error{Op: "job.source", Code: tgr.Unavailable, Message: what + ": " + tgr.MessageOf(err), Err: err}
	if inner := new(tgr.Error); errors.As(err, &inner) {
		e.Err = inner.Err // its message is in ours
	}
	return e
}

// scanAction collects the metadata files of a repository.
func scanAction(src io.Reader, limit int64) (map[string][]byte, error) {
	files, total := map[string][]byte{}, int64(0)
	t := tar.NewReader(src)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return files, fmt.Errorf("its files cannot be read: %w", err)
		}
		name := path.Clean(h.Name)
		if base := path.Base(name); h.Typeflag != tar.TypeReg || base != "action.yml" && base != "action.yaml" {
			continue
		}
		if total += h.Size; h.Size > limit || total > maxActionBytes || len(files) >= maxActionFiles {
			return files, fmt.Errorf("its metadata %s is too large, or one of too many", name)
		}
		data, err := io.ReadAll(t)
		if err != nil {
			return files, fmt.Errorf("its files cannot be read: %w", err)
		}
		files[name] = data
	}
}

// parseAction reads metadata; its first error fails the step.
func (r *run) parseAction(u *unit, file string, src []byte) (*workflow.Action, error) {
	meta, problems := workflow.ParseAction(file, src)
	for _, p := range problems {
		if p.Severity == workflow.SeverityError {
			return nil, &fault{blame: tgr.BlameWorkflow, message: p.Error()}
		}
	}
	if meta == nil {
		return nil, workflowError(r.file(u.sc), u.src.Pos, "uses: '%s' cannot be read", excerpt(u.src.Uses))
	}
	return meta, nil
}

// uses runs the main part of an action.
func (r *run) uses(u *unit) error {
	if isCheckout(u.src.Uses) {
		return r.checkout(u)
	}
	if err := r.load(u); err != nil {
		return err
	}
	r.used = true
	switch using := u.action.meta.Runs.Using; {
	case using == "composite":
		return r.composite(u)
	case strings.HasPrefix(using, "node"):
		return r.node(u)
	case using == "docker":
		return r.docker(u)
	default:
		return workflowError(u.action.file(), workflow.Pos{}, "runs.using: '%s' is not supported", excerpt(using))
	}
}

// inputs evaluates what an action is given: its step's `with`, then the defaults of the metadata.
func (r *run) inputs(u *unit) ([]pair, error) {
	given, err := r.evalPairs("with", u.src.With, u.sc, u, u.src.Pos)
	if err != nil {
		return nil, err
	}
	var list []pair
	for _, in := range u.action.meta.Inputs {
		value, ok := lookup(given, in.Name)
		switch {
		case ok && in.Deprecation != "" && !u.warned:
			r.warn(u.rec, fmt.Sprintf("Input '%s' has been deprecated with message: %s", in.Name, in.Deprecation))
		case !ok && in.HasDefault:
			var err error
			if value, err = r.text(in.Default, u.sc, u, workflow.Pos{}, u.action.file()+": inputs."+in.Name+".default"); err != nil {
				return nil, err
			}
		}
		list = append(list, pair{in.Name, value})
	}
	list = append(list, r.unknownInputs(u, given)...)
	u.warned = true
	return list, nil
}

// unknownInputs warns of inputs that the action does not declare, and returns them: it is given them all the same.
func (r *run) unknownInputs(u *unit, given []pair) []pair {
	var valid, bad []string
	for _, in := range u.action.meta.Inputs {
		valid = append(valid, "'"+in.Name+"'")
	}
	var unknown []pair
	for _, p := range given {
		if declared(u.action.meta.Inputs, p.Name) {
			continue
		}
		unknown = append(unknown, p)
		if !u.action.takes(p.Name) {
			bad = append(bad, "'"+p.Name+"'")
		}
	}
	if len(bad) > 0 && !u.warned {
		r.warn(u.rec, fmt.Sprintf("%s:%d:%d: Unexpected input(s) %s, valid inputs are [%s]",
			r.file(u.sc), u.src.Pos.Line, u.src.Pos.Column, strings.Join(bad, ", "), strings.Join(valid, ", ")))
	}
	return unknown
}

// takes reports whether an action may be given an input that its metadata does not declare.
func (a *action) takes(name string) bool {
	return a.bare || a.meta.Runs.Using == "docker" && (strings.EqualFold(name, "entryPoint") || strings.EqualFold(name, "args"))
}

func declared(inputs []workflow.Input, name string) bool {
	for _, in := range inputs {
		if strings.EqualFold(in.Name, name) {
			return true
		}
	}
	return false
}

func lookup(ps []pair, name string) (string, bool) {
	for _, p := range ps {
		if strings.EqualFold(p.Name, name) {
			return p.Value, true
		}
	}
	return "", false
}

// usesHeader logs what an action is about to be run with.
func (r *run) usesHeader(u *unit, given []pair) {
	r.header(u, u.src.Uses, func(line func(string)) {
		for i, p := range given {
			if i == 0 {
				line("with:")
			}
			line("  " + p.Name + ": " + p.Value)
		}
	})
}

// shownInputs leaves out the inputs that are empty.
func shownInputs(ps []pair) []pair {
	var shown []pair
	for _, p := range ps {
		if p.Value != "" {
			shown = append(shown, p)
		}
	}
	return shown
}

// inputsContext makes the inputs context of a composite action.
func inputsContext(ps []pair) expr.Value {
	o := expr.NewObject()
	for _, p := range ps {
		o.Set(p.Name, expr.Str(p.Value))
	}
	return expr.Obj(o)
}
