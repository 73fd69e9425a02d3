package dispatch

import (
	"context"
	"errors"
	"path"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// loader finds reusable workflows among the files of an event's commit, or in other repositories. A ref of one of those
// is the same commit for all workflows of an event.
type loader struct {
	ctx     context.Context // of planning the event
	source  Source
	ev      tgr.Event
	files   []File
	commits map[string]workflow.Loaded // by repository and ref
	fault   error                      // the first error that is not the workflow's
}

// load is workflow.Options.Load.
func (l *loader) load(uses string) (workflow.Loaded, error) {
	w, err := l.find(uses)
	if err == nil {
		return w, nil
	}
	switch tgr.CodeOf(err) {
	case tgr.NotFound, tgr.Invalid, tgr.Unauthorized, tgr.Limit, tgr.Workflow:
	default:
		if l.fault == nil {
			l.fault = err
		}
	}
	return w, errors.New(tgr.MessageOf(err))
}

func (l *loader) find(uses string) (workflow.Loaded, error) {
	if local, ok := localUses(uses); ok {
		for _, f := range l.files {
			if f.Path == local && f.Err == nil {
				return workflow.Loaded{File: f.Path, Data: f.Data}, nil
			}
		}
		return l.source.Workflow(l.ctx, l.ev, "", "", local)
	}
	name, ref, _ := strings.Cut(uses, "@")
	parts := strings.SplitN(name, "/", 3)
	if len(parts) < 3 {
		return workflow.Loaded{}, tgr.Errorf("workflow.load", tgr.Workflow, "expected owner/repo/.github/workflows/file.yml@ref")
	}
	repo := parts[0] + "/" + parts[1]
	key := strings.ToLower(repo) + "@" + ref
	before, again := l.commits[key]
	if again {
		ref = before.SHA
	}
	w, err := l.source.Workflow(l.ctx, l.ev, repo, ref, parts[2])
	if err != nil {
		return w, err
	}
	if again {
		w.Ref = before.Ref
	} else if l.commits == nil {
		l.commits = map[string]workflow.Loaded{}
	}
	l.commits[key] = w
	w.File, w.Repo = uses, repo
	return w, nil
}

// localUses is the path of a workflow of the same repository.
func localUses(uses string) (file string, ok bool) {
	for _, prefix := range []string{"./", "$/"} {
		if rest, ok := strings.CutPrefix(uses, prefix); ok {
			return path.Clean(rest), true
		}
	}
	return "", false
}
