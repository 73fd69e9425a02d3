package githubtest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// object is a JSON object.
type object = map[string]any

func (s *Server) user(login string) object {
	id := int64(0)
	for _, c := range login {
		id = id*31%1_000_003 + int64(c)
	}
	kind := "User"
	if strings.HasSuffix(login, "[bot]") {
		kind = "Bot"
	}
	return object{"login": login, "id": id, "type": kind, "site_admin": false, "url": s.API() + "users/" + login,
		"html_url": s.URL + "/" + login, "avatar_url": s.URL + "/avatars/" + login}
}

func (r *Repo) json() object {
	owner, name, _ := strings.Cut(r.FullName, "/")
	return object{
		"id": r.ID, "node_id": fmt.Sprintf("R_%d", r.ID), "name": name, "full_name": r.FullName, "private": r.private.Load(),
		"owner": r.s.user(owner), "html_url": r.s.URL + "/" + r.FullName, "fork": false,
		"url": r.s.API() + "repos/" + r.FullName, "clone_url": r.URL, "git_url": r.URL, "default_branch": r.DefaultBranch,
		"description": nil, "language": nil, "archived": false, "visibility": map[bool]string{true: "private", false: "public"}[r.private.Load()],
	}
}

func (r *Repo) commitJSON(sha string) object {
	out, err := r.Git("show", "--no-patch", "--format=%T%x00%aI%x00%an%x00%ae%x00%B", sha)
	f := strings.SplitN(out, "\x00", 5)
	if err != nil || len(f) < 5 {
		return nil
	}
	who := object{"name": f[2], "email": f[3], "username": strings.ToLower(f[2])}
	files := object{"added": []string{}, "removed": []string{}, "modified": []string{}}
	diff, _ := r.Git("diff-tree", "--root", "-r", "--no-commit-id", "--name-status", "--no-renames", sha)
	for line := range strings.Lines(diff) {
		kind, name, _ := strings.Cut(strings.TrimSpace(line), "\t")
		key := map[string]string{"A": "added", "D": "removed"}[kind]
		if key == "" {
			key = "modified"
		}
		files[key] = append(files[key].([]string), name)
	}
	return object{"id": sha, "tree_id": f[0], "distinct": true, "message": strings.TrimSpace(f[4]), "timestamp": f[1],
		"url": r.s.URL + "/" + r.FullName + "/commit/" + sha, "author": who, "committer": who,
		"added": files["added"], "removed": files["removed"], "modified": files["modified"]}
}

// PushEvent builds the payload of a push of ref from before to after, from the repository's real state.
// Zero as before is a new ref, as after a deleted one.
func (r *Repo) PushEvent(ref, before, after string) []byte {
	p := object{
		"ref": ref, "before": before, "after": after, "created": before == Zero, "deleted": after == Zero, "forced": false,
		"base_ref": nil, "compare": r.s.URL + "/" + r.FullName + "/compare/" + before[:12] + "..." + after[:12],
		"commits": []object{}, "head_commit": nil, "repository": r.json(),
		"pusher": object{"name": "ada", "email": "ada@example.com"}, "sender": r.s.user("ada"),
	}
	if after != Zero {
		span := []string{after}
		if before != Zero {
			span = append(span, "^"+before)
		}
		list, _ := r.Git(append([]string{"rev-list", "--reverse", "--max-count=20"}, span...)...)
		commits := []object{}
		for _, sha := range strings.Fields(list) {
			commits = append(commits, r.commitJSON(sha))
		}
		p["commits"], p["head_commit"] = commits, r.commitJSON(r.SHA(after))
	}
	return encode(p)
}

// Event builds the payload of a pull_request webhook: opened, synchronize, closed, …
func (p *Pull) Event(action string) []byte {
	e := object{"action": action, "number": p.Number, "pull_request": p.json(), "repository": p.Repo.json(), "sender": p.Repo.s.user(p.Author)}
	return encode(e)
}

func (p *Pull) json() object {
	r := p.Repo
	url := fmt.Sprintf("%srepos/%s/pulls/%d", r.s.API(), r.FullName, p.Number)
	side := func(repo *Repo, ref, sha string) object {
		owner, _, _ := strings.Cut(repo.FullName, "/")
		return object{"label": owner + ":" + ref, "ref": ref, "sha": sha, "user": r.s.user(owner), "repo": repo.json()}
	}
	var merge any
	if p.MergeSHA != "" {
		merge = p.MergeSHA
	}
	return object{
		"id": r.ID*1000 + int64(p.Number), "number": p.Number, "state": "open", "locked": false, "title": p.Title, "body": "", "draft": false,
		"url": url, "html_url": fmt.Sprintf("%s/%s/pull/%d", r.s.URL, r.FullName, p.Number), "user": r.s.user(p.Author),
		"merge_commit_sha": merge, "merged": false, "mergeable": p.MergeSHA != "", "labels": []object{},
		"head": side(p.Head, p.HeadRef, p.HeadSHA), "base": side(r, p.BaseRef, p.BaseSHA),
		"author_association": p.association(),
	}
}

// CheckRunEvent builds the payload of a check_run webhook of the App: rerequested, completed, …
func (r *Repo) CheckRunEvent(action string, c CheckRun) []byte {
	app := object{"id": r.s.c.AppID, "slug": "tgr"}
	return encode(object{"action": action, "repository": r.json(), "sender": r.s.user("ada"), "check_run": object{
		"id": c.ID, "name": c.Name, "head_sha": c.HeadSHA, "external_id": c.ExternalID, "status": c.Status, "conclusion": c.Conclusion, "app": app,
		"check_suite": object{"head_sha": c.HeadSHA, "app": app},
	}})
}

// CheckSuiteEvent builds the payload of a check_suite webhook of the App: rerequested, completed, …
func (r *Repo) CheckSuiteEvent(action, sha string) []byte {
	return encode(object{"action": action, "repository": r.json(), "sender": r.s.user("ada"), "check_suite": object{
		"id": 1, "head_sha": sha, "status": "completed", "app": object{"id": r.s.c.AppID, "slug": "tgr"},
	}})
}

// DispatchEvent builds the payload of a workflow_dispatch webhook.
func (r *Repo) DispatchEvent(ref, workflow string, inputs map[string]string) []byte {
	return encode(object{"ref": ref, "workflow": workflow, "inputs": inputs, "repository": r.json(), "sender": r.s.user("ada")})
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a map of strings, numbers and maps: cannot be
	}
	return b
}

// Answer is what a webhook's receiver answered.
type Answer struct {
	Delivery string // X-GitHub-Delivery
	Status   int
	Header   http.Header
	Body     []byte // the first MiB
}

// Deliver sends a signed webhook as GitHub does, under a new delivery id.
func Deliver(ctx context.Context, url, event string, payload []byte, secret string) (*Answer, error) {
	return Redeliver(ctx, url, event, payload, secret, newGUID())
}

// Redeliver is Deliver under a given delivery id.
func Redeliver(ctx context.Context, url, event string, payload []byte, secret, delivery string) (*Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(payload)
	for k, v := range map[string]string{
		"Accept": "*/*", "Content-Type": "application/json", "User-Agent": "GitHub-Hookshot/044aadd",
		"X-GitHub-Delivery": delivery, "X-GitHub-Event": event, "X-GitHub-Hook-ID": "292430182",
		"X-GitHub-Hook-Installation-Target-ID": "79929171", "X-GitHub-Hook-Installation-Target-Type": "repository",
		"X-Hub-Signature-256": "sha256=" + hex.EncodeToString(mac.Sum(nil)),
	} {
		req.Header.Set(k, v)
	}
	client := &http.Client{Timeout: 10 * time.Second} // GitHub waits ten seconds
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return &Answer{Delivery: delivery, Status: resp.StatusCode, Header: resp.Header, Body: body}, err
}

func newGUID() string {
	var b [16]byte
	rand.Read(b[:])
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// association is what its author is to the repository.
func (p *Pull) association() string {
	if p.Association == "" {
		return "CONTRIBUTOR"
	}
	return p.Association
}
