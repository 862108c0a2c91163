"""The face of amsd for type checkers and editors; at run time its names are imported when they are used."""

from amsd.diffusion.families.ddim_scheduler import SchedulerMixin as SchedulerMixin
from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler as SOCDDIMScheduler
from amsd.errors import AmsdError as AmsdError
from amsd.errors import RunError as RunError
from amsd.errors import UsageError as UsageError
from amsd.evaluation.result import EvaluationResult as EvaluationResult
from amsd.experiment.diagnose import diagnose as diagnose
from amsd.experiment.evaluate import evaluate_checkpoint as evaluate_checkpoint
from amsd.experiment.export import export as export
from amsd.experiment.sample import SampleRequest as SampleRequest
from amsd.experiment.sample import sample as sample
from amsd.experiment.setup import build_accelerator as build_accelerator
from amsd.experiment.setup import build_problem as build_problem
from amsd.experiment.setup import load_policy as load_policy
from amsd.experiment.train import Finished as Finished
from amsd.experiment.train import train as train
from amsd.prompts import PromptSet as PromptSet
from amsd.prompts import load_prompts as load_prompts
from amsd.recipe import Cost as Cost
from amsd.recipe import MethodSection as MethodSection
from amsd.recipe import Recipe as Recipe
from amsd.recipe import dump_toml as dump_toml
from amsd.recipe import from_dict as from_dict
from amsd.recipe import load_recipe as load_recipe
from amsd.report.data import Run as Run
from amsd.report.data import load_run as load_run
from amsd.report.source import write_report as write_report
from amsd.run_directory import RunDirectory as RunDirectory
from amsd.sweep.results import SweepResults as SweepResults
from amsd.sweep.results import load_sweep as load_sweep
from amsd.tracking import Tracker as Tracker
from amsd.tracking.log import Log as Log
from amsd.tracking.log import read_log as read_log
from amsd.training.methods.adjoint_matching import AMTrainer as AMTrainer
from amsd.training.methods.adjoint_matching import BufferAMTrainer as BufferAMTrainer
from amsd.training.methods.ddpo import DDPOTrainer as DDPOTrainer
from amsd.training.methods.draft import DRaFTTrainer as DRaFTTrainer
from amsd.training.methods.eam import EAMTrainer as EAMTrainer
from amsd.training.methods.ram import RAMTrainer as RAMTrainer
from amsd.training.methods.refl import ReFLTrainer as ReFLTrainer
from amsd.training.trainer import BufferSOCTrainer as BufferSOCTrainer
from amsd.training.trainer import SOCTrainer as SOCTrainer

__version__: str
