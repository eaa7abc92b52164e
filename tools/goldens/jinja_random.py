"""Random expressions and templates over the variables of jinja.py."""


class Expressions:
    """Random expressions, most of which make sense."""

    def __init__(self, rng):
        self.rng = rng

    def literal(self):
        return self.rng.choice(["0", "1", "2", "-1", "7", "2.5", "0.0", "true", "false", "none", "''", "'a'", "'Ab c'",
                                "'é😀'", "' x '", "[]", "[1, 2, 3]", "['b', 'a']",
                                "{}", "{'a': 1}", "(1, 'x')", "s", "n", "f", "l", "e", "d", "m", "u", "t", "z", "no",
                                "x", "flag", "mixed", "w", "neg", "deep.x", "m[0].role", "d.b"])

    def expr(self, depth):
        rng = self.rng
        if depth <= 0 or rng.random() < 0.1:
            return self.literal()
        sub = lambda: self.expr(depth - 1)
        kind = rng.randrange(12)
        if kind == 0:
            return f"({sub()} {rng.choice(['+', '-', '*', '//', '%', '/', '~', '+', '~'])} {sub()})"
        if kind == 1:
            return f"{sub()} {rng.choice(['+', '~', '-', '*'])} {sub()}"
        if kind == 2:
            return f"({sub()} {rng.choice(['==', '!=', '<', '<=', '>', '>=', 'in', 'not in', 'and', 'or'])} {sub()})"
        if kind == 3:
            return f"({sub()} if {sub()} else {sub()})"
        if kind == 4:
            return f"(not {sub()})"
        if kind == 5:
            return f"{sub()}[{rng.choice(['0', '-1', '1', ':1', '1:', '::-1', ':-1', sub(), repr('a')])}]"
        if kind in (6, 7):
            return f"{sub()}|{self.filter(sub)}"
        if kind == 8:
            return f"({sub()} is {rng.choice(['', 'not '])}{self.test()})"
        if kind == 9:
            return f"{sub()}.{self.method(sub)}"
        if kind == 10:
            return f"[{sub()}, {sub()}]"
        return f"{{'k': {sub()}, 'a': {sub()}}}"

    def filter(self, sub):
        return self.rng.choice([
            "upper", "lower", "title", "capitalize", "trim", "length", "first", "last", "list", "join", "join(',')",
            "string", "int", "float", "abs", "round", "sort", "unique|list", "reverse|list",
            "tojson", "tojson(indent=1)", "default('D')", "default('D', true)", "min", "max", "sum", "items|list",
            "dictsort", "select|list", "reject|list", "map('string')|list", "map('upper')|list",
            "map(attribute='a')|list", "selectattr('a')|list", "selectattr('role', 'equalto', 'user')|list",
            "select('string')|list", "reject('none')|list", "indent(1)", "batch(2)|list", "slice(2)|list",
            "center(9)", "safe", "e", "escape", f"replace('a', {sub()})", f"join({sub()})", f"default({sub()})", "trim('a')",
            "sort(reverse=true)", "attr('a')", "count", "reverse"])

    def test(self):
        return self.rng.choice(["defined", "undefined", "none", "string", "number", "integer", "float", "boolean",
                                "true", "false", "mapping", "iterable", "sequence", "callable", "odd", "even",
                                "divisibleby 2", "eq 1", "ne 'a'", "in [1, 'a']", "gt 1", "lt 'b'", "lower", "upper",
                                "sameas none"])

    def method(self, sub):
        return self.rng.choice(["upper()", "lower()", "strip()", "lstrip()", "rstrip('a')", "split()", "split('a')",
                                "split(' ', 1)", "rsplit('a', 1)", "splitlines()", "startswith('a')", "endswith('a')",
                                "find('a')", "count('a')", "replace('a', 'bb')", "title()", "capitalize()", "isdigit()",
                                "isalpha()", "islower()", "isspace()", "get('a')", "items()|list", "keys()|list",
                                "values()|list", "a", "role", "x", "0", "index(1)", "count(1)", f"join({sub()})",
                                f"get({sub()})", f"startswith({sub()})", "partition('b')", "center(7, '*')",
                                "zfill(4)"])


class Templates(Expressions):
    """Random templates: statements, scopes and white space."""

    NAMES = ["a", "b", "n", "s", "ns.v", "q"]

    def tag(self, inside):
        before, after = (self.rng.choice(["", "", "", "-", "+"]) for _ in range(2))
        return "{%" + before + " " + inside + " " + after + "%}"

    def text(self):
        return self.rng.choice(["x", " ", "\n", "  ", "\n  ", " y\n", "\n\n", "", "\t", "{# c #}", "  {#- c #}\n",
                                "{{- a -}}", " {{ b }}\n", "{{ q }}", "{{ ns.v }}", "{{ s }}", "{{ n }}"])

    def body(self, depth, loop):
        return "".join(self.statement(depth, loop) for _ in range(self.rng.choice((1, 1, 2, 3))))

    def statement(self, depth, loop=False):
        rng = self.rng
        if depth <= 0 or rng.random() < 0.35:
            return self.text()
        inner = lambda loop=loop: self.text() + self.body(depth - 1, loop) + self.text()
        kind = rng.randrange(9)
        if kind == 0:
            middle = "".join(self.tag("elif " + self.expr(1)) + inner() for _ in range(rng.randrange(2)))
            if rng.random() < 0.5:
                middle += self.tag("else") + inner()
            return self.tag("if " + self.expr(1)) + inner() + middle + self.tag("endif")
        if kind in (1, 2):
            over = rng.choice(["l", "w", "range(3)", "m|map(attribute='n')", "'xyz'", "e", "[1, 2]", "d", self.expr(1)])
            cond = rng.choice(["", "", "", " if a", " if loop", " if not b is defined"])
            ending = self.tag("else") + inner() if rng.random() < 0.3 else ""
            return self.tag(f"for {rng.choice('abi')} in {over}{cond}") + inner(True) + ending + self.tag("endfor")
        if kind in (3, 4):
            return self.tag(f"set {rng.choice(self.NAMES)} = {self.expr(1)}")
        if kind == 5:
            chain = rng.choice(["", " | upper", " | trim"])
            return self.tag(f"set {rng.choice(self.NAMES)}{chain}") + inner(False) + self.tag("endset")
        if kind == 6:
            return self.tag(f"with {rng.choice('ab')} = {self.expr(1)}") + inner() + self.tag("endwith")
        if kind == 7:
            f = rng.choice("fg")
            calls = "{{ " + f + "(1) }}{{ " + f + "(b=2) }}"
            return self.tag(f"macro {f}(a, b={self.expr(0)})") + inner(False) + self.tag("endmacro") + calls
        if loop:
            return rng.choice([self.tag("break"), self.tag("continue"), "{{ loop.index }}{{ loop.last }}",
                               "{{ loop.length }}", self.tag("if loop.first") + inner() + self.tag("endif")])
        return "{{ " + self.expr(2) + " }}"

    def template(self):
        return "{% set ns = namespace(v=0) %}" + self.body(3, False)
