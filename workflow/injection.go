package workflow

import (
	"slices"
	"strings"
)

// injections warns of a step whose script has in it what anybody may write, such as the title of a pull request: a value
// that ends the quotes it stands in is executed. In env it is a value and nothing else.
//
// https://docs.github.com/en/actions/concepts/security/script-injections
func (r *reader) injections(step *node) {
	scripts := []*node{step.get("run")}
	if strings.HasPrefix(strings.ToLower(textOf(step.get("uses"))), "actions/github-script@") {
		scripts = append(scripts, step.get("with").get("script"))
	}
	for _, n := range scripts {
		said := ""
		for _, e := range r.exprs[n] {
			for _, path := range e.Paths() {
				if name := strings.ToLower(strings.Join(path, ".")); anybodyWrites(name) && name != said {
					r.warnf(n.pos(), "injection", "'%s' is what anybody may write, and becomes part of the script; give it to env, and have the script read that", name)
					said = name
				}
			}
		}
	}
}

// anybodyWrites reports whether people without rights in a repository choose the value at that path.
func anybodyWrites(path string) bool {
	if path == "github.head_ref" {
		return true
	}
	field, ok := strings.CutPrefix(path, "github.event.")
	return ok && slices.Contains([]string{
		"issue.title", "issue.body", "comment.body", "review.body", "review_comment.body", "discussion.title", "discussion.body",
		"pull_request.title", "pull_request.body", "pull_request.head.ref", "pull_request.head.label",
		"pull_request.head.repo.default_branch", "head_commit.message", "head_commit.author.name", "head_commit.author.email",
		"workflow_run.head_branch", "workflow_run.display_title", "workflow_run.head_commit.message",
		"workflow_run.head_commit.author.name", "workflow_run.head_commit.author.email", "workflow_run.head_repository.description",
	}, field)
}
