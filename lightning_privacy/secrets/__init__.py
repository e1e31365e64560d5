"""What must not leave: modules that keep their weights, the vault, references to it, and the scan for leaks."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.secrets.findings import Finding as Finding
    from lightning_privacy.secrets.hkdf import hkdf_sha256 as hkdf_sha256
    from lightning_privacy.secrets.keys import site_key as site_key
    from lightning_privacy.secrets.keys import zero_mean_key as zero_mean_key
    from lightning_privacy.secrets.optimizer_state import join_optimizer_states as join_optimizer_states
    from lightning_privacy.secrets.optimizer_state import split_optimizer_states as split_optimizer_states
    from lightning_privacy.secrets.private_states import load_private_states as load_private_states
    from lightning_privacy.secrets.private_states import save_private_states as save_private_states
    from lightning_privacy.secrets.scanner import find_secrets as find_secrets
    from lightning_privacy.secrets.scanner import unsearchable as unsearchable
    from lightning_privacy.secrets.secret_module import SecretModule as SecretModule
    from lightning_privacy.secrets.secret_module import exposed_secrets as exposed_secrets
    from lightning_privacy.secrets.secret_module import named_public_parameters as named_public_parameters
    from lightning_privacy.secrets.secret_module import named_secret_parameters as named_secret_parameters
    from lightning_privacy.secrets.secret_module import secret_modules as secret_modules
    from lightning_privacy.secrets.secret_ref import SecretRef as SecretRef
    from lightning_privacy.secrets.vault import KeyVault as KeyVault

_WHERE = {
    "Finding": "lightning_privacy.secrets.findings",
    "KeyVault": "lightning_privacy.secrets.vault",
    "SecretModule": "lightning_privacy.secrets.secret_module",
    "SecretRef": "lightning_privacy.secrets.secret_ref",
    "exposed_secrets": "lightning_privacy.secrets.secret_module",
    "find_secrets": "lightning_privacy.secrets.scanner",
    "hkdf_sha256": "lightning_privacy.secrets.hkdf",
    "join_optimizer_states": "lightning_privacy.secrets.optimizer_state",
    "load_private_states": "lightning_privacy.secrets.private_states",
    "named_public_parameters": "lightning_privacy.secrets.secret_module",
    "named_secret_parameters": "lightning_privacy.secrets.secret_module",
    "save_private_states": "lightning_privacy.secrets.private_states",
    "secret_modules": "lightning_privacy.secrets.secret_module",
    "site_key": "lightning_privacy.secrets.keys",
    "split_optimizer_states": "lightning_privacy.secrets.optimizer_state",
    "unsearchable": "lightning_privacy.secrets.scanner",
    "zero_mean_key": "lightning_privacy.secrets.keys",
}
__all__ = [
    "Finding",
    "KeyVault",
    "SecretModule",
    "SecretRef",
    "exposed_secrets",
    "find_secrets",
    "hkdf_sha256",
    "join_optimizer_states",
    "load_private_states",
    "named_public_parameters",
    "named_secret_parameters",
    "save_private_states",
    "secret_modules",
    "site_key",
    "split_optimizer_states",
    "unsearchable",
    "zero_mean_key",
]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
