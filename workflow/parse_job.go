package workflow

import (
	"slices"
	"strings"
)

// jobs converts the jobs, of which there may be only so many, and checks what holds between them.
func (r *reader) jobs(n *node, most int) []Job {
	var out []Job
	names := ids{}
	for _, p := range entries(n) {
		if p.key.bad || isExpression(p.key) {
			continue
		}
		if msg := names.claim(p.key.text); msg != "" {
			r.follow(p.key.pos(), "id", "%s", msg)
		}
		if p.value.kind != kindMap {
			continue
		}
		out = append(out, r.job(p.key, p.value))
	}
	if len(out) > most {
		r.errorf(n, "limit", "the workflow has %d jobs; at most %d are allowed", len(out), most)
	}
	r.graph(n, out)
	return out
}

func (r *reader) job(key, n *node) Job {
	j := Job{
		Key:             key.text,
		Name:            textOf(n.get("name")),
		Needs:           texts(n.get("needs")),
		If:              conditionOf(n.get("if")),
		Strategy:        r.strategy(n.get("strategy")),
		Env:             vars(n.get("env")),
		Defaults:        defaults(n.get("defaults")),
		Outputs:         vars(n.get("outputs")),
		TimeoutMinutes:  textOf(n.get("timeout-minutes")),
		CancelTimeout:   textOf(n.get("cancel-timeout-minutes")),
		ContinueOnError: textOf(n.get("continue-on-error")),
		Concurrency:     r.concurrency(n.get("concurrency")),
		Permissions:     permissions(n.get("permissions")),
		CacheMode:       textOf(n.get("cache-mode")),
		Uses:            textOf(n.get("uses")),
		With:            vars(n.get("with")),
		Pos:             key.pos(),
		At: places(n, "if", "name", "needs", "strategy", "runs-on", "timeout-minutes", "cancel-timeout-minutes",
			"continue-on-error", "concurrency", "environment", "with", "secrets", "uses"),
	}
	if u := n.get("uses"); u != nil {
		r.workflowRef(u)
		j.keyPlaces(n, "with")
		j.keyPlaces(n, "secrets")
		j.Secrets, j.SecretsInherit = secretsOf(n.get("secrets"))
		return j
	}
	j.RunsOn = r.runsOn(n.get("runs-on"))
	j.Environment = environment(n.get("environment"))
	j.Snapshot = snapshot(n.get("snapshot"))
	r.containers(&j, n)
	j.Steps = r.steps(n.get("steps"))
	return j
}

// keyPlaces remembers where the values of a mapping stand: "with.name".
func (j *Job) keyPlaces(n *node, key string) {
	for _, p := range entries(n.get(key)) {
		j.At[key+"."+p.key.text] = p.value.pos()
	}
}

// conditionOf is the normalised source of an if; success() where there is none.
func conditionOf(n *node) string {
	if n == nil || n.cond == "" {
		return "success()"
	}
	return n.cond
}

func (r *reader) runsOn(n *node) RunsOn {
	if n == nil || n.kind != kindMap {
		return RunsOn{Labels: texts(n)}
	}
	if g := n.get("group"); g != nil && !g.bad && !isExpression(g) {
		scope, name, scoped := strings.Cut(g.text, "/")
		if scoped && (name == "" || strings.Contains(name, "/") || !slices.Contains([]string{"org", "organization", "ent", "enterprise"}, scope)) {
			r.errorf(g, "runs-on", "invalid group '%s'; expected a name, organization/name or enterprise/name", g.text)
		}
	}
	return RunsOn{Labels: texts(n.get("labels")), Group: textOf(n.get("group"))}
}

func environment(n *node) *Environment {
	if n == nil || n.bad {
		return nil
	}
	if n.scalar() {
		if n.text == "" {
			return nil
		}
		return &Environment{Name: n.text}
	}
	return &Environment{Name: textOf(n.get("name")), URL: textOf(n.get("url")), Deployment: textOf(n.get("deployment"))}
}

func snapshot(n *node) *Snapshot {
	if n == nil || n.bad {
		return nil
	}
	if n.scalar() {
		return &Snapshot{ImageName: n.text}
	}
	s := &Snapshot{ImageName: textOf(n.get("image-name")), Version: textOf(n.get("version"))}
	if c := n.get("if"); c != nil {
		s.If = conditionOf(c)
	}
	return s
}

func secretsOf(n *node) ([]EnvVar, bool) {
	if n != nil && n.kind == kindString && n.text == "inherit" {
		return nil, true
	}
	return vars(n), false
}

// containers converts container and services.
func (r *reader) containers(j *Job, n *node) {
	if c := n.get("container"); c != nil {
		j.Container = r.container(c)
	}
	services := n.get("services")
	if services == nil {
		return
	}
	if services.scalar() {
		j.ServicesExpr = services.text
		return
	}
	for _, p := range entries(services) {
		if isInsert(p.key.text) {
			j.ServicesExpr = p.value.text
			continue
		}
		if c := r.container(p.value); c != nil {
			j.Services = append(j.Services, Service{Name: p.key.text, Container: *c})
		}
	}
}

func (r *reader) container(n *node) *Container {
	if n.bad {
		return nil
	}
	if n.scalar() {
		if isWholeExpression(n) {
			return &Container{Expr: n.text}
		}
		return &Container{Image: r.image(n)}
	}
	c := &Container{
		Env: vars(n.get("env")), Ports: texts(n.get("ports")), Volumes: texts(n.get("volumes")),
		Options: textOf(n.get("options")), Entrypoint: textOf(n.get("entrypoint")), Command: textOf(n.get("command")),
	}
	if cred := n.get("credentials"); cred != nil && cred.kind == kindMap {
		c.Credentials = &Credentials{Username: textOf(cred.get("username")), Password: textOf(cred.get("password"))}
		if c.Credentials.Username == "" || c.Credentials.Password == "" {
			r.warnf(cred.pos(), "container", "credentials are of use only with both username and password")
		}
	}
	image := n.get("image")
	switch {
	case image == nil && n.dynamic(): // GitHub looks at such a container when it is about to start it
		r.warnf(n.pos(), "container", "the container has no image")
	case image == nil:
		r.follow(n.pos(), "container", "the container image cannot be empty")
	default:
		c.Image = r.image(image)
	}
	return c
}

// image is the image without docker://.
func (r *reader) image(n *node) string {
	image, docker := strings.CutPrefix(n.text, "docker://")
	if docker && image == "" {
		r.errorf(n, "container", "the container image cannot be empty")
	}
	return image
}

// isWholeExpression reports whether a string is one ${{ }} and nothing else, so that it may yield any value.
func isWholeExpression(n *node) bool {
	s := strings.TrimSpace(n.text)
	return strings.HasPrefix(s, "${{") && strings.HasSuffix(s, "}}") && strings.Count(s, "${{") == 1
}

// graph checks needs: no unknown job, no cycle, and a job to begin with.
func (r *reader) graph(jobsNode *node, jobs []Job) {
	byName := make(map[string]int, len(jobs))
	for i := range jobs {
		byName[strings.ToLower(jobs[i].Key)] = i
	}
	open := make(map[int][]*node) // jobs that cannot run yet, with the needs they still wait for
	dependants := make([][]int, len(jobs))
	var ready []int
	bodies := make(map[Pos]*node, len(jobs))
	for _, p := range jobsNode.pairs {
		bodies[p.key.pos()] = p.value
	}
	for i := range jobs {
		for _, need := range needNodes(bodies[jobs[i].Pos]) {
			k, ok := byName[strings.ToLower(need.text)]
			if !ok {
				r.unknownNeed(need, jobs, i)
			} else {
				dependants[k] = append(dependants[k], i)
			}
			open[i] = append(open[i], need)
		}
		if len(open[i]) == 0 {
			ready = append(ready, i)
		}
	}
	if len(ready) == 0 && len(jobsNode.items) == 0 && !jobsNode.bad {
		if slices.ContainsFunc(jobsNode.pairs, func(p pair) bool { return p.key.bad || p.value.bad }) {
			return // there may be one among those
		}
		r.follow(jobsNode.pos(), "needs", "the workflow must contain at least one job with no dependencies")
		return
	}
	waiting := make(map[int]int, len(open))
	for i, needs := range open {
		waiting[i] = len(needs)
	}
	for len(ready) > 0 {
		done := ready[0]
		ready = ready[1:]
		delete(open, done)
		for _, d := range dependants[done] {
			if waiting[d]--; waiting[d] == 0 {
				ready = append(ready, d)
			}
		}
	}
	for i := range jobs {
		for _, need := range open[i] {
			if k, ok := byName[strings.ToLower(need.text)]; ok && open[k] != nil {
				r.follow(need.pos(), "needs", "job '%s' depends on job '%s', which creates a cycle in the dependency graph", jobs[i].Key, need.text)
			}
		}
	}
}

func (r *reader) unknownNeed(need *node, jobs []Job, self int) {
	if r.full() {
		return
	}
	var names []string
	for i := range jobs[:min(len(jobs), 200)] {
		if i != self {
			names = append(names, jobs[i].Key)
		}
	}
	r.follow(need.pos(), "needs", "job '%s' depends on unknown job '%s'%s", jobs[self].Key, need.text, similar(need.text, names))
}

func needNodes(job *node) []*node {
	n := job.get("needs")
	switch {
	case n == nil || n.bad || n.kind == kindMap:
		return nil
	case n.kind == kindSeq:
		return n.items
	}
	return []*node{n}
}
