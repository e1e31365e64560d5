"""Which settings are secrets, told by their names, and secrets inside texts."""

import re

__all__ = ["WITHHELD", "is_secret_name", "scrub_secrets"]

WITHHELD = "<withheld>"

_ALWAYS = frozenset({
    "secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "passphrases", "passcode",
    "credential", "credentials", "authorization", "authorisation", "bearer", "apikey", "apikeys", "accesskey",
    "accesskeys", "secretkey", "privatekey", "authtoken", "accesstoken",
})  # fmt: skip
"""Words that make a name a secret's wherever they stand in it."""
_LAST = frozenset({
    "key", "keys", "token", "tokens", "auth", "prompt", "prompts", "vault", "vaults", "salt", "salts", "cookie",
    "cookies",
})  # fmt: skip
"""Words that do so where nothing but the words below follow: ``token_dim`` is no secret."""
_AFTER = frozenset({
    "file", "files", "path", "paths", "ref", "refs", "id", "ids", "value", "values", "name", "seed", "url", "uri",
    "header",
})  # fmt: skip
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_USER_OF_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/@'\"<>]+|[^\s/@:'\"<>]+:[^\s@'\"<>]+)@")
_VALUE = rf"{WITHHELD}|(?:(?:Bearer|Basic|Token)\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s,;&]+)"
_ASSIGNED = re.compile(rf"([A-Za-z_][\w.-]*)([\"']?\s*[=:]\s*)({_VALUE})", re.IGNORECASE)
_OPTION = re.compile(rf"(--([A-Za-z_][\w.-]*)\s+)({_VALUE})", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(?:hf_|ghp_|gho_|github_pat_|glpat-|xox[abprs]-|sk-(?=[\w-]*[0-9]))[\w-]{16,}|\b(?:AKIA|ASIA)[0-9A-Z]{12,}"
)
"""What tokens of well-known services look like."""


def is_secret_name(name: str) -> bool:
    """Return whether a setting of that name holds a secret, or says where one lies.

    Example:
        >>> [is_secret_name(n) for n in ("apiKey", "AWS_ACCESS_KEY_ID", "hf_token", "token_dim", "monitor")]
        [True, True, True, False, False]
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if _ALWAYS & set(words):
        return True
    while words and (words[-1] in _AFTER or words[-1].isdecimal()):
        words.pop()
    return bool(words) and words[-1] in _LAST


def scrub_secrets(text: str) -> str:
    """Return a text without users and passwords in addresses, values given to secret names, and well-known tokens.

    Example:
        >>> scrub_secrets("HF_TOKEN=hf_abc from https://ann:hunter2@host/x")
        'HF_TOKEN=<withheld> from https://<withheld>@host/x'
    """
    text = _USER_OF_URL.sub(rf"\1{WITHHELD}@", text)
    text = _OPTION.sub(lambda found: found[1] + WITHHELD if is_secret_name(found[2]) else found[0], text)
    text = _ASSIGNED.sub(_withhold, text)
    return _SHAPES.sub(WITHHELD, text)


def _withhold(found: re.Match[str]) -> str:
    name, between, value = found.groups()
    # the value of a name that is none may itself begin an assignment
    return name + between + (WITHHELD if is_secret_name(name) else _ASSIGNED.sub(_withhold, value))
