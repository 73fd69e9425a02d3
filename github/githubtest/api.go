package githubtest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status is a commit status that was reported.
type Status struct {
	ID          int64     `json:"id"`
	SHA         string    `json:"-"`
	State       string    `json:"state"`
	Context     string    `json:"context"`
	Description string    `json:"description"`
	TargetURL   string    `json:"target_url"`
	Created     time.Time `json:"created_at"`
}

// Annotation is an annotation of a check run.
type Annotation struct {
	Path      string `json:"path"`
	StartLine int    `json:"start_line"`
	EndLine   int    `json:"end_line"`
	Level     string `json:"annotation_level"`
	Message   string `json:"message"`
	Title     string `json:"title,omitempty"`
}

// Output is what a check run shows.
type Output struct {
	Title       string       `json:"title"`
	Summary     string       `json:"summary"`
	Text        string       `json:"text,omitempty"`
	Annotations []Annotation `json:"annotations,omitempty"` // of all requests together
}

// CheckRun is a check run in its present state.
type CheckRun struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	HeadSHA    string `json:"head_sha"`
	DetailsURL string `json:"details_url,omitempty"`
	ExternalID string `json:"external_id,omitempty"`
	Status     string `json:"status"`
	Conclusion string `json:"conclusion,omitempty"`
	Output     Output `json:"output"`
	Updates    int    `json:"-"` // requests that changed it after it was made
}

// Comment is a comment of an issue or a pull request.
type Comment struct {
	ID      int64  `json:"id"`
	Number  int    `json:"-"` // of the pull request
	Body    string `json:"body"`
	User    object `json:"user"`
	Updates int    `json:"-"`
}

// records is what was reported, by full name of the repository.
type records struct {
	statuses map[string][]*Status
	checks   map[string][]*CheckRun
	comments map[string][]*Comment
	pulls    map[string][]*Pull
}

// Statuses returns the statuses of a repository, in the order in which they were reported.
func (s *Server) Statuses(repo string) []Status { return copyAll(s, s.record.statuses, repo) }

// CheckRuns returns the check runs of a repository, in the order in which they were made.
func (s *Server) CheckRuns(repo string) []CheckRun { return copyAll(s, s.record.checks, repo) }

// Comments returns the comments of a repository's pull requests, in the order in which they were made.
func (s *Server) Comments(repo string) []Comment { return copyAll(s, s.record.comments, repo) }

func copyAll[T any](s *Server, from map[string][]*T, repo string) []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []T
	for _, v := range from[repo] {
		all = append(all, *v)
	}
	return all
}

// AddComment makes a comment as a user would.
func (s *Server) AddComment(repo string, number int, login, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addComment(repo, number, login, body)
}

func (s *Server) addComment(repo string, number int, login, body string) *Comment {
	s.nextID++
	c := &Comment{ID: s.nextID, Number: number, Body: body, User: s.user(login)}
	s.record.comments[repo] = append(s.record.comments[repo], c)
	return c
}

// call is one request of the API.
type call struct {
	s     *Server
	w     http.ResponseWriter
	r     *http.Request
	repo  *Repo
	rest  []string           // the path below repos/owner/name
	token *InstallationToken // of the App's installation, that asks; nil: it does not
	who   string             // "token", "app" (a JWT), "installation", or "" without credentials
}

func (c *call) reply(code int, v any) {
	c.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	c.w.Header().Set("X-RateLimit-Limit", "5000")
	c.w.Header().Set("X-RateLimit-Remaining", "4999")
	c.w.Header().Set("X-RateLimit-Reset", strconv.FormatInt(c.s.c.Now().Add(time.Hour).Unix(), 10))
	c.w.WriteHeader(code)
	json.NewEncoder(c.w).Encode(v)
}

func (c *call) fail(code int, message string) { c.reply(code, object{"message": message}) }

// read decodes the body of a request.
func (c *call) read(v any) bool {
	body, err := io.ReadAll(io.LimitReader(c.r.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(body, v)
	}
	if err != nil {
		c.fail(http.StatusBadRequest, "Problems parsing JSON: "+err.Error())
	}
	return err == nil
}

func (s *Server) api(w http.ResponseWriter, r *http.Request, path string) {
	c := &call{s: s, w: w, r: r}
	c.who, c.token = s.who(r)
	if c.who == "" && (s.c.Token != "" || r.Method != http.MethodGet || r.Header.Get("Authorization") != "") {
		c.fail(http.StatusUnauthorized, "Bad credentials")
		return
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case parts[0] == "user" && c.who == "token":
		c.reply(http.StatusOK, s.user(s.c.Login))
	case parts[0] == "installation":
		c.installation(parts[1:])
	case parts[0] == "app":
		c.app(parts[1:])
	case parts[0] == "repos" && len(parts) >= 3:
		if c.repo = s.Repo(parts[1] + "/" + parts[2]); c.repo == nil {
			c.fail(http.StatusNotFound, "Not Found")
			return
		}
		c.rest = parts[3:]
		c.inRepo()
	default:
		c.fail(http.StatusNotFound, "Not Found")
	}
}

// who tells the credentials of a request. Without a configured token any token is taken.
func (s *Server) who(r *http.Request) (string, *InstallationToken) {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(kind, "bearer") && !strings.EqualFold(kind, "token") || token == "" {
		return "", nil
	}
	installed := s.installationToken(token)
	switch {
	case installed != nil:
		return "installation", installed
	case s.c.AppID != 0 && jwtIssuer(token) == strconv.FormatInt(s.c.AppID, 10):
		return "app", nil
	case s.c.Token == "" && !strings.HasPrefix(token, "ghs_") || token == s.c.Token && token != "":
		return "token", nil
	}
	return "", nil
}

// jwtIssuer reads who a JWT says it is from, without checking its signature.
func jwtIssuer(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Issuer any `json:"iss"`
	}
	if err != nil || json.Unmarshal(b, &claims) != nil {
		return ""
	}
	return fmt.Sprint(claims.Issuer)
}

// app answers for the GitHub App: it is installed everywhere, under the installation id 1.
func (c *call) app(rest []string) {
	if c.who != "app" {
		c.fail(http.StatusUnauthorized, "A JSON web token could not be decoded")
		return
	}
	if len(rest) == 0 {
		c.reply(http.StatusOK, object{"id": c.s.c.AppID, "slug": "tgr", "name": "tgr"})
		return
	}
	if c.r.Method != http.MethodPost || len(rest) != 3 || rest[2] != "access_tokens" {
		c.fail(http.StatusNotFound, "Not Found")
		return
	}
	c.createToken()
}

func (c *call) inRepo() {
	route := c.r.Method + " "
	if len(c.rest) > 0 {
		route += c.rest[0]
	}
	if !c.allowed(route) {
		return
	}
	switch {
	case route == "GET ":
		c.reply(http.StatusOK, c.repo.json())
	case route == "GET installation" && c.who == "app" && c.s.c.AppRepos != nil && !slices.Contains(c.s.c.AppRepos, c.repo.FullName):
		c.fail(http.StatusNotFound, "Not Found")
	case route == "GET installation" && c.who == "app":
		c.reply(http.StatusOK, object{"id": 1, "app_id": c.s.c.AppID, "app_slug": "tgr", "permissions": c.s.appPermissions()})
	case route == "POST statuses" && len(c.rest) == 2:
		c.createStatus(c.rest[1])
	case route == "POST check-runs", route == "PATCH check-runs" && len(c.rest) == 2:
		c.writeCheck()
	case route == "GET commits" && len(c.rest) >= 2:
		c.commit()
	case route == "GET pulls" && len(c.rest) == 2:
		c.pull()
	case route == "GET contents" && len(c.rest) >= 2:
		c.contents()
	case len(c.rest) >= 3 && c.rest[0] == "issues":
		c.comments()
	default:
		c.fail(http.StatusNotFound, "Not Found")
	}
}

func (c *call) createStatus(sha string) {
	st := &Status{SHA: sha, Created: c.s.c.Now().UTC()}
	if !c.read(st) {
		return
	}
	st.SHA = sha
	switch {
	case c.repo.SHA(sha) == "":
		c.fail(http.StatusUnprocessableEntity, "No commit found for SHA: "+sha)
		return
	case len([]rune(st.Description)) > 140:
		c.fail(http.StatusUnprocessableEntity, "Validation Failed: description is too long (maximum is 140 characters)")
		return
	case st.State != "error" && st.State != "failure" && st.State != "pending" && st.State != "success":
		c.fail(http.StatusUnprocessableEntity, "Validation Failed: state")
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.nextID++
	st.ID = c.s.nextID
	c.s.record.statuses[c.repo.FullName] = append(c.s.record.statuses[c.repo.FullName], st)
	c.reply(http.StatusCreated, st)
}

// writeCheck makes or changes a check run, which GitHub lets only Apps do.
func (c *call) writeCheck() {
	if c.s.c.AppID != 0 && c.who != "installation" || c.s.c.AppID == 0 && c.s.c.Token != "" {
		c.fail(http.StatusForbidden, "You must authenticate via a GitHub App.")
		return
	}
	var in CheckRun
	if !c.read(&in) {
		return
	}
	switch {
	case len(in.Output.Annotations) > 50:
		c.fail(http.StatusUnprocessableEntity, "No more than 50 annotations per request")
		return
	case len(in.Output.Summary) > 65535 || len(in.Output.Text) > 65535:
		c.fail(http.StatusUnprocessableEntity, "Only 65535 characters are allowed")
		return
	case in.Status == "completed" && in.Conclusion == "":
		c.fail(http.StatusUnprocessableEntity, "conclusion is required when status is completed")
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.r.Method == http.MethodPost {
		if c.repo.SHA(in.HeadSHA) == "" || in.Name == "" {
			c.fail(http.StatusUnprocessableEntity, "No commit found for SHA: "+in.HeadSHA)
			return
		}
		c.s.nextID++
		in.ID = c.s.nextID
		c.s.record.checks[c.repo.FullName] = append(c.s.record.checks[c.repo.FullName], &in)
		c.reply(http.StatusCreated, in)
		return
	}
	for _, check := range c.s.record.checks[c.repo.FullName] {
		if strconv.FormatInt(check.ID, 10) == c.rest[1] {
			check.merge(in)
			c.reply(http.StatusOK, check)
			return
		}
	}
	c.fail(http.StatusNotFound, "Not Found")
}

// merge applies a PATCH: annotations are added to those that are there.
func (r *CheckRun) merge(in CheckRun) {
	r.Updates++
	if in.Status != "" {
		r.Status, r.Conclusion = in.Status, in.Conclusion
	}
	if in.Name != "" {
		r.Name = in.Name
	}
	if in.DetailsURL != "" {
		r.DetailsURL = in.DetailsURL
	}
	if in.Output.Title != "" {
		in.Output.Annotations = append(r.Output.Annotations, in.Output.Annotations...)
		r.Output = in.Output
	}
}

func (c *call) commit() {
	sha := c.repo.SHA(c.rest[1])
	if sha == "" {
		c.fail(http.StatusUnprocessableEntity, "No commit found for SHA: "+c.rest[1])
		return
	}
	if len(c.rest) == 3 && c.rest[2] == "check-runs" {
		found := []CheckRun{}
		for _, r := range c.s.CheckRuns(c.repo.FullName) {
			if r.HeadSHA == sha {
				found = append(found, r)
			}
		}
		c.reply(http.StatusOK, object{"total_count": len(found), "check_runs": found})
		return
	}
	if len(c.rest) == 3 && (c.rest[2] == "statuses" || c.rest[2] == "status") {
		found := []Status{}
		for _, st := range c.s.Statuses(c.repo.FullName) {
			if st.SHA == sha {
				found = append(found, st)
			}
		}
		c.reply(http.StatusOK, found)
		return
	}
	c.reply(http.StatusOK, object{"sha": sha, "commit": c.repo.commitJSON(sha)})
}

func (c *call) pull() {
	c.s.mu.Lock()
	pulls := c.s.record.pulls[c.repo.FullName]
	c.s.mu.Unlock()
	n, err := strconv.Atoi(c.rest[1])
	if err != nil || n < 1 || n > len(pulls) {
		c.fail(http.StatusNotFound, "Not Found")
		return
	}
	c.reply(http.StatusOK, pulls[n-1].json())
}

func (c *call) contents() {
	ref := c.r.URL.Query().Get("ref")
	if ref == "" {
		ref = c.repo.DefaultBranch
	}
	path := strings.Join(c.rest[1:], "/")
	data, err := c.repo.Git("cat-file", "blob", ref+":"+path)
	if err != nil {
		c.fail(http.StatusNotFound, "Not Found")
		return
	}
	c.reply(http.StatusOK, object{"type": "file", "path": path, "encoding": "base64", "content": base64.StdEncoding.EncodeToString([]byte(data))})
}

// comments answers issues/N/comments and issues/comments/ID.
func (c *call) comments() {
	var in struct {
		Body string `json:"body"`
	}
	if c.r.Method != http.MethodGet && !c.read(&in) {
		return
	}
	if c.r.Method != http.MethodGet && (in.Body == "" || len([]rune(in.Body)) > 65536) {
		c.fail(http.StatusUnprocessableEntity, "Validation Failed: body is too long (maximum is 65536 characters)")
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	all := c.s.record.comments[c.repo.FullName]
	if c.rest[1] == "comments" {
		for _, comment := range all {
			if strconv.FormatInt(comment.ID, 10) != c.rest[2] {
				continue
			}
			if c.r.Method == http.MethodPatch {
				comment.Body = in.Body
				comment.Updates++
			}
			c.reply(http.StatusOK, comment)
			return
		}
		c.fail(http.StatusNotFound, "Not Found")
		return
	}
	number, err := strconv.Atoi(c.rest[1])
	if err != nil || c.rest[2] != "comments" {
		c.fail(http.StatusNotFound, "Not Found")
		return
	}
	if c.r.Method == http.MethodPost {
		login := c.s.c.Login
		if c.who == "installation" {
			login = "tgr[bot]"
		}
		c.reply(http.StatusCreated, c.s.addComment(c.repo.FullName, number, login, in.Body))
		return
	}
	c.listComments(all, number)
}

func (c *call) listComments(all []*Comment, number int) {
	q := c.r.URL.Query()
	size, _ := strconv.Atoi(q.Get("per_page"))
	page, _ := strconv.Atoi(q.Get("page"))
	if size < 1 || size > 100 {
		size = 30
	}
	found := []*Comment{}
	for _, comment := range all {
		if comment.Number == number {
			found = append(found, comment)
		}
	}
	from := min(max(page-1, 0)*size, len(found))
	to := min(from+size, len(found))
	if to < len(found) {
		q.Set("page", strconv.Itoa(max(page, 1)+1))
		c.w.Header().Set("Link", fmt.Sprintf(`<%s%s?%s>; rel="next"`, c.s.URL, c.r.URL.Path, q.Encode()))
	}
	c.reply(http.StatusOK, found[from:to])
}
